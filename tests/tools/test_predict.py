import csv
import json
import os
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.image_sources import ImageSource
from densesiam_d2.tools.predict import draw_instances, main, predict_instances

from .test_segment import YAML as SEMANTIC

INSTANCES = """
MODEL:
  DEVICE: cpu
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  CLASS_NAMES: [cat, dog]
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 2}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 8, POOLER_RESOLUTION: 14}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}
"""


def write_images(folder, names=("a.png", "town/a.png")):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60)))


def model_files(folder, text):
    """Write a yaml and the checkpoint of an untrained model; return the words that name them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (folder / "model.yaml").write_text(text)
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_file(str(folder / "model.yaml"))
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    return ["--config-file", str(folder / "model.yaml"), "--weights", str(folder / "model.pth")]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def two_objects(masks=True):
    """In an image of 4 rows and 6 columns: a cat of 2 x 3 pixels, and a dog of a single one in the corner."""
    instances = Instances((4, 6))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 4.0, 3.0], [5.0, 3.0, 6.0, 4.0]]))
    instances.scores, instances.pred_classes = torch.tensor([0.75, 0.5]), torch.tensor([0, 1])
    if masks:
        instances.pred_masks = torch.zeros(2, 4, 6, dtype=torch.bool)
        instances.pred_masks[0, 1:3, 1:4] = True
        instances.pred_masks[0, 1, 1] = False
        instances.pred_masks[1, 3, 5] = True
    return instances


@pytest.mark.parametrize(("masks", "area"), [(True, 5), (False, 6)])
def test_known_predictions(tmp_path, masks, area):
    """The files hold exactly what a predictor returned that finds objects in every second image only."""
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))
    answers = iter([two_objects(masks), two_objects(masks)[[]], two_objects(masks)])
    source, out = ImageSource(tmp_path, white_level=255), tmp_path / "out"
    counted = predict_instances(lambda image: {"instances": next(answers)}, source, out, ["cat", "dog"])
    assert counted == [2, 0, 2]

    full = {"width": "6", "height": "4", "count": "2", "area": str(area + 1)}
    full |= {"cat count": "1", "cat area": str(area), "dog count": "1", "dog area": "1"}
    empty = {**dict.fromkeys(full, "0"), "width": "6", "height": "4"}
    assert rows_of(out / "counts.csv") == [
        {"image": "a.png", **full},
        {"image": "b.png", **empty},
        {"image": "c.png", **full},
    ]

    images = COCO(str(out / "images.json"))
    results = images.loadRes(str(out / "coco_results.json"))
    found = results.loadAnns(results.getAnnIds(imgIds=[3]))
    assert images.loadImgs([3])[0]["file_name"] == "c.png" and len(found) == 2
    assert [images.loadCats([a["category_id"]])[0]["name"] for a in found] == ["cat", "dog"]
    assert [a["bbox"] for a in found] == [[1, 1, 3, 2], [5, 3, 1, 1]] and [a["score"] for a in found] == [0.75, 0.5]
    if masks:
        np.testing.assert_array_equal([results.annToMask(a) for a in found], two_objects().pred_masks.numpy())
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]


def test_masks_are_drawn_where_they_are():
    grey, instances = np.full((40, 60, 3), 128, np.uint8), two_objects()
    large = Instances((40, 60), scores=instances.scores, pred_classes=instances.pred_classes)
    large.pred_boxes = Boxes(instances.pred_boxes.tensor * 10)
    large.pred_masks = instances.pred_masks.repeat_interleave(10, dim=1).repeat_interleave(10, dim=2)
    drawn = draw_instances(grey, large, ["cat", "dog"]).astype(int)
    drawn = cv2.resize(drawn.astype(np.uint8), (60, 40), interpolation=cv2.INTER_AREA).astype(int)
    colored = np.ptp(drawn, axis=2) > 25  # grey has equal channels
    assert colored[25, 15] and colored[38, 58]
    assert not colored[:8].any() and not colored[:, :8].any()


def test_an_image_of_two_columns_is_drawn():
    instances = two_objects()
    narrow = Instances((4, 2), scores=instances.scores, pred_classes=instances.pred_classes)
    narrow.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 2.0, 2.0, 4.0]]))
    narrow.pred_masks = torch.ones(2, 4, 2, dtype=torch.bool)
    assert draw_instances(np.zeros((4, 2, 3), np.uint8), narrow, ["cat", "dog"]).any()


def test_a_real_model_with_one_unreadable_file(tmp_path, capsys):
    words = model_files(tmp_path, INSTANCES)
    write_images(tmp_path / "images")
    (tmp_path / "images" / "torn.png").write_bytes((tmp_path / "images" / "a.png").read_bytes()[:60])
    counts = {}
    for threshold in ("0.1", "0.45", "1"):
        out = tmp_path / f"out_{threshold}"
        line = [*words, "--input", str(tmp_path / "images"), "--output", str(out), "--threshold", threshold]
        assert main(line) == 0
        scores = [found["score"] for found in json.loads((out / "coco_results.json").read_text())]
        assert all(score >= float(threshold) for score in scores)
        rows = rows_of(out / "counts.csv")
        assert [row["image"] for row in rows] == ["a.png", "town/a.png"]
        counts[threshold] = sum(int(row["count"]) for row in rows)
        assert counts[threshold] == len(scores)
        assert cv2.imread(str(out / "overlays" / "town" / "a.jpg")).shape == (480, 640, 3)
    assert counts["0.1"] > counts["1"] == 0
    printed = capsys.readouterr().out
    assert "allows, and may show more" not in printed
    assert main([*line[:-1], "0", "TEST.DETECTIONS_PER_IMAGE", "3"]) == 0
    full = "2 images have as many objects as TEST.DETECTIONS_PER_IMAGE 3 allows, and may show more: append"
    assert f"{full} TEST.DETECTIONS_PER_IMAGE 30" in capsys.readouterr().out
    assert "files that could not be read: 1" in printed and "torn.png" in printed


def test_overlays_of_an_earlier_run_are_removed_and_those_of_others_are_not(tmp_path, capsys):
    words, out = model_files(tmp_path, INSTANCES), tmp_path / "out"
    write_images(tmp_path / "images")
    line = [*words, "--output", str(out), "--input", str(tmp_path / "images")]
    assert main(line) == 0
    (tmp_path / "images" / "a.png").unlink()
    assert main(line) == 0
    assert [path.name for path in (out / "overlays").rglob("*.jpg")] == ["a.jpg"]  # of town
    assert not (out / "overlays" / "a.jpg").exists()
    write_images(tmp_path / "mine" / "overlays", ("b.png",))
    (tmp_path / "mine" / "images.json").write_text("mine")
    assert main([*words, "--output", str(tmp_path / "mine"), "--input", str(tmp_path / "images")]) == 2
    assert "has images.json, overlays, not written by this tool" in capsys.readouterr().err
    assert (tmp_path / "mine" / "overlays" / "b.png").is_file()
    assert (tmp_path / "mine" / "images.json").read_text() == "mine"


def test_semantic_models_and_lists_go_through_segment(tmp_path):
    words = model_files(tmp_path, SEMANTIC)
    write_images(tmp_path / "images", ("a.png", "town/b.png", "town/c.png"))
    (tmp_path / "some.txt").write_text("images/town/c.png\n\nimages/a.png\n")
    out = tmp_path / "out"
    assert main([*words, "--input", str(tmp_path / "some.txt"), "--output", str(out)]) == 0
    rows = rows_of(out / "counts.csv")
    assert [row["image"] for row in rows] == ["town/c.png", "a.png"]  # the order of the list
    for row in rows:
        labels = cv2.imread(str(out / "labels" / row["image"]), cv2.IMREAD_UNCHANGED)
        areas = [int(row[f"cluster {i} area"]) for i in range(5)]
        assert areas == np.bincount(labels.ravel(), minlength=5).tolist()
        assert sum(areas) == int(row["area"]) == 80 * 60
        for i in range(5):
            sizes = cv2.connectedComponentsWithStats((labels == i).astype(np.uint8), connectivity=4)[2][1:, 4]
            assert int(row[f"cluster {i} count"]) == (sizes >= 100).sum()
    files = [str(tmp_path / "images" / row["image"]) for row in rows]
    assert main([*words, "--input", *files, "--output", str(tmp_path / "two")]) == 0
    assert rows_of(tmp_path / "two" / "counts.csv") == rows


def test_uncertain_pixels_get_no_class(tmp_path):
    """With random weights no class has a probability of 0.99, so every pixel is 255."""
    words = model_files(tmp_path, SEMANTIC)
    write_images(tmp_path / "images", ("a.png",))
    line = [*words, "--input", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert main([*line, "--threshold", "0.99"]) == 0
    assert (cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED) == 255).all()
    assert rows_of(tmp_path / "out" / "counts.csv")[0]["area"] == "0"


@pytest.mark.parametrize("model", [SEMANTIC, INSTANCES], ids=["semantic", "instances"])
def test_names_that_are_not_utf8(tmp_path, capfdbinary, model):
    words = model_files(tmp_path, model)
    write_images(tmp_path / "images", ("a.png",))
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "images" / os.fsdecode(b"torn\xe9.png")).write_bytes(b"torn")
    out = tmp_path / "out"
    assert main([*words, "--input", str(tmp_path / "images"), "--output", str(out)]) == 0
    assert (out / "counts.csv").read_bytes().splitlines()[1].startswith(b"caf\xe9.png,80,60,")
    assert cv2.imdecode(np.fromfile(out / "overlays" / os.fsdecode(b"caf\xe9.jpg"), np.uint8), 1) is not None
    assert rb"torn\udce9.png: no image" in capfdbinary.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold", "2"], r"predict: --threshold 2\.0 must lie between 0 and 1"),
        (["--names", "names.json"], r"predict: --names names\.json is for clusters"),
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", "3"],
            r"predict: .*model\.pth: roi_heads\S+ is \(.*\), but \(.*\) by the config",
        ),
        (["MODEL.META_ARCHITECTURE", "DenseSiam"], r"DenseSiam, which predicts features: give a model"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, more, message, capsys):
    words = model_files(tmp_path, INSTANCES)
    write_images(tmp_path / "images")
    assert main([*words, "--input", str(tmp_path / "images"), "--output", str(tmp_path / "out"), *more]) == 2
    assert re.search(message, capsys.readouterr().err)
