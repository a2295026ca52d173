"""check_data on labelled sets by name."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import register_pascal_voc

from densesiam_d2.data import load_image_folder
from densesiam_d2.tools import check_data
from tests.evaluation.voc_files import voc_xml
from tests.labels.coco_files import coco, write

pytestmark = pytest.mark.usefixtures("catalog")


def check(tmp_path, *words):
    """Return exit code and report."""
    report = tmp_path / "report.json"
    status = check_data.main([*map(str, words), "--workers", "1", "--report", str(report)])
    return status, json.loads(report.read_text())


def test_sound_coco_file(tmp_path, capsys):
    name = f"coco:{write(coco(), tmp_path)},images={tmp_path}/images"
    status, report = check(tmp_path, name)
    assert status == 0 and report["images"] == 3 and report["unreadable"] == []
    sound = {"name": name, "classes": ["red", "blue"], "images": 3, "annotations": 6, "findings": []}
    assert report["labels"] == [sound]
    assert "3 images, 6 annotations, classes: red, blue" in capsys.readouterr().out


def test_errors_and_repairs(tmp_path, capsys):
    content = coco(40)
    del content["annotations"][0]["segmentation"]
    for annotation in content["annotations"][10:30]:
        annotation["bbox"] = [0, 0, 0, 0]
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    status, report = check(tmp_path, name)
    findings = {finding["kind"]: finding for finding in report["labels"][0]["findings"]}
    assert status == 1
    assert {kind: (f["level"], f["count"]) for kind, f in findings.items()} == {
        "mask-missing": ("error", 1),
        "box-missing": ("repaired", 20),  # taken from the masks
    }
    assert len(findings["box-missing"]["examples"]) == 20  # all of them, where a message has three
    assert "error: " in capsys.readouterr().out
    assert check(tmp_path, name, "--boxes")[0] == 0
    assert check(tmp_path, name, "--accept", "mask-missing")[0] == 0


def test_every_image_and_label_map_is_read(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for i in range(1100):  # more than the sample of a run
        cv2.imwrite(str(tmp_path / "images" / f"{i:04d}.png"), np.zeros((3, 4, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "labels" / f"{i:04d}.png"), np.arange(12).reshape(3, 4).astype(np.uint8) % 2)
    (tmp_path / "labels" / "0555.png").write_bytes(b"\x89PNG")
    (tmp_path / "images" / "0777.png").write_bytes(b"\x89PNG")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    status, report = check(tmp_path, f"masks:{tmp_path}/images,labels={tmp_path}/labels")
    assert status == 1
    assert [file["path"] for file in report["unreadable"]] == [f"{tmp_path}/images/0777.png"]
    counts = {finding["kind"]: finding["count"] for finding in report["labels"][0]["findings"]}
    assert counts == {"image-unreadable": 1, "label-unreadable": 1}


def test_voc_layout_of_one_s_own_needs_no_masks(tmp_path):
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a")
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml(("cat", (1, 1, 20, 20))))
    cv2.imwrite(str(tmp_path / "JPEGImages" / "a.jpg"), np.zeros((64, 96, 3), np.uint8))
    register_pascal_voc("own_voc", str(tmp_path), "train", 2012, ["cat"])
    status, report = check(tmp_path, "own_voc")
    assert (status, report["labels"][0]["findings"], report["labels"][0]["annotations"]) == (0, [], 1)


def test_wrong_names(tmp_path, capsys):
    assert check_data.main(["masks:/no/labels"]) == 2
    assert "names no folder of label maps" in capsys.readouterr().err
    assert check_data.main([f"coco:{tmp_path}/no.json", "--workers", "1"]) == 1
    assert "no.json do not exist" in capsys.readouterr().out


def test_a_named_set_of_images_alone_has_no_labels_to_check(tmp_path):
    write(coco(), tmp_path)
    DatasetCatalog.register("photos_alone", lambda: load_image_folder(tmp_path / "images"))
    MetadataCatalog.get("photos_alone").set(image_roots=[str(tmp_path / "images")])
    status, report = check(tmp_path, "photos_alone")
    assert status == 0 and report["images"] == 3 and "labels" not in report
