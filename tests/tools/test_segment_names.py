"""From clusters to labels by the command: names.json, class maps, COCO regions, the folder for training, videos."""

import contextlib
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from densesiam_d2.data import cityscapes27
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine.segmentor import Segmentor
from densesiam_d2.engine.setup import load_config
from densesiam_d2.image_io import read_image
from densesiam_d2.labels.cluster_names import file_sha256
from densesiam_d2.reporting.label_colors import palette
from densesiam_d2.tools import check_data, name_clusters, score_maps
from tests.data.test_image_sources import write_video
from tests.engine.test_train_net import CPU, FCN
from tests.engine.test_train_net import run as train
from tests.tools.test_segment import run  # noqa: F401  a fixture

NAMES = ["road", "tree", "ignore", "road", None]


@pytest.fixture(autouse=True)
def all_clusters_occur(run, tmp_path):  # noqa: F811
    """Give the logits of the untrained model, whose last layer is a norm, mean 0 and deviation 1 over the images."""
    cfg = load_config(str(tmp_path / "seg.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    segmentor = Segmentor(cfg, certainty=True)
    images = [read_image(path) for path in (tmp_path / "images").rglob("*.*")]
    with torch.no_grad():
        z = [segmentor.model([{"image": segmentor._input(image)}])[0]["sem_seg"].flatten(1) for image in images]
    z, state = torch.cat(z, dim=1), segmentor.model.state_dict()  # (K, pixels)
    last = "sem_seg_head.classifier.projector.7"
    state[f"{last}.weight"] /= z.std(dim=1)
    state[f"{last}.bias"] -= z.mean(dim=1)
    state[f"{last}.bias"] /= z.std(dim=1)
    torch.save({"model": state}, tmp_path / "model.pth")


@pytest.fixture
def names(run, tmp_path):  # noqa: F811
    path = tmp_path / "names.json"
    sha256 = file_sha256(tmp_path / "model.pth")
    path.write_text(json.dumps({"checkpoint_sha256": sha256, "num_clusters": 5, "names": NAMES}))
    return path


def maps(folder):
    return {str(p.relative_to(folder)): cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in folder.rglob("*.png")}


def test_clusters_become_classes(run, names, tmp_path, capsys, catalog):  # noqa: F811
    (tmp_path / "images" / "a.png").unlink()  # masks: refuses a folder with a.jpg and a.png
    run(output="clusters")
    run("--names", names, "--min-area", 9)
    clusters, classes = maps(tmp_path / "clusters" / "labels"), maps(tmp_path / "out" / "labels")
    assert classes.keys() == clusters.keys() == {"a.png", "town/b.png"}
    for name, labels in clusters.items():
        expected = [[{"road": 0, "tree": 1}.get(NAMES[cluster], 255) for cluster in row] for row in labels.tolist()]
        assert classes[name].tolist() == expected
    assert {v for m in classes.values() for v in np.unique(m)} == {0, 1, 255}
    assert (tmp_path / "out" / "classes.txt").read_text() == "road\ntree\n"
    total = sum(m.size for m in classes.values())
    found = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [(c["name"], c["color"]) for c in found] == [
        ("road", palette(2)[0].tolist()),
        ("tree", palette(2)[1].tolist()),
    ]
    assert found[0]["share"] == pytest.approx(sum((m == 0).sum() for m in classes.values()) / total)
    assert 'value="tree"' in (tmp_path / "out" / "gallery.html").read_text()  # the typed names are in the page
    left_out = 100 * sum((m == 255).sum() for m in classes.values()) / total
    assert f"2 clusters are ignored or have no name: {left_out:.1f} % of the pixels" in capsys.readouterr().out

    # The layout that training reads.
    dataset = f"masks:{tmp_path / 'images'},labels={tmp_path / 'out' / 'labels'}"
    register_path_datasets([dataset])
    assert len(DatasetCatalog.get(dataset)) == 2
    assert MetadataCatalog.get(dataset).stuff_classes == ["road", "tree"]
    assert check_data.main([dataset, "--workers", "1"]) == 0

    # The regions: each in a class map, none smaller than 9 pixels, and check_data finds no error.
    annotations = tmp_path / "out" / "annotations.json"
    assert check_data.main([f"coco:{annotations},images={tmp_path / 'images'}", "--workers", "1"]) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
    assert {image["file_name"] for image in coco.imgs.values()} == {"a.jpg", "town/b.png"}
    drawn = {name: np.full_like(m, 255) for name, m in classes.items()}
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation["area"] >= 9 and 0 < annotation["score"] <= 1
        name = coco.imgs[annotation["image_id"]]["file_name"].replace(".jpg", ".png")
        drawn[name][mask] = annotation["category_id"] - 1
    for name, labels in classes.items():
        assert (drawn[name] == labels)[drawn[name] != 255].all()
        assert (drawn[name] == labels).mean() > 0.9  # all but small regions


def test_the_maps_of_named_clusters_train_an_fcn(run, names, tmp_path, catalog):  # noqa: F811
    (tmp_path / "images" / "a.png").unlink()
    run("--names", names)
    maps_set = f"masks:{tmp_path / 'images'},labels={tmp_path / 'out' / 'labels'}"
    folder = tmp_path / "fcn"
    train(FCN, *CPU, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", maps_set, "DATASETS.TEST", "()", "OUTPUT_DIR", folder)
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert logged[-1]["iteration"] == 1 and np.isfinite(logged[-1]["total_loss"])
    run(weights="fcn/model_final.pth", config="fcn/config.yaml", output="segmented")
    assert (tmp_path / "segmented" / "classes.txt").read_text() == "road\ntree\n"
    words = ["--maps", str(tmp_path / "segmented" / "labels"), "--dataset", maps_set, "--output", str(tmp_path / "s")]
    assert score_maps.main(words) == 0
    scores = json.loads((tmp_path / "s" / "sem_seg_evaluation.json").read_text())["sem_seg"]
    assert {"mIoU", "IoU-road", "IoU-tree"} <= set(scores)


def test_names_of_another_checkpoint_are_refused(run, names, tmp_path, capsys):  # noqa: F811
    data = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "other.pth").write_bytes(data + b"\0" * 8)
    run("--names", names, weights="other.pth", status=2)
    said = r"segment: .*names\.json names the clusters of another checkpoint \(sha256.*\n"
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--names", "gone.json"), r"segment: the names gone\.json do not exist"),
        (("--min-area", 0), "segment: --min-area 0 must be at least 1"),
        (("--every", 2), "segment: --every 2 is for videos"),
        (("--alpha", 2), "segment: --alpha 2.0 must lie between 0 and 1"),
    ],
)
def test_mistakes_end_in_one_line(run, words, message, capsys):  # noqa: F811
    run(*words, status=2)
    assert re.search(message, capsys.readouterr().err)


def test_a_video(run, names, tmp_path, catalog, capsys):  # noqa: F811
    write_video(tmp_path / "drive.avi", frames=5)
    run("--names", names, "--every", 2, source="drive.avi")
    (printed,) = re.findall(r"^  DATASETS\.TRAIN \"\('(.*)',\)\"$", capsys.readouterr().out, re.MULTILINE)
    out = tmp_path / "out"
    frames = ["drive/000000", "drive/000002", "drive/000004"]
    for folder, ending in (("labels", ".png"), ("overlays", ".jpg"), ("images", ".jpg")):
        found = sorted(str(p.relative_to(out / folder)) for p in (out / folder).rglob("*.*"))
        assert found == [f"{frame}{ending}" for frame in frames]
    dataset = f"masks:{out}/images/drive,labels={out}/labels/drive,classes={out}/classes.txt"
    assert printed == dataset
    entries = json.loads((out / "annotations.json").read_text())["images"]
    assert [entry["file_name"] for entry in entries] == [f"{frame}.jpg" for frame in frames]

    write_video(tmp_path / "other.avi", frames=2)  # its frames lie beside those of the first video, which stay
    run("--names", names, source="other.avi")
    (printed,) = re.findall(r"^  DATASETS\.TRAIN \"\('(.*)',\)\"$", capsys.readouterr().out, re.MULTILINE)
    register_path_datasets([printed])
    assert len(DatasetCatalog.get(printed)) == 2
    assert MetadataCatalog.get(printed).stuff_classes == ["road", "tree"]


def test_no_set_is_named_whose_names_differ_by_the_ending_alone(run, names, capsys):  # noqa: F811
    run("--names", names)  # with a.jpg and a.png
    printed = capsys.readouterr().out
    assert "1 images have the name of another one but for the ending: rename them" in printed
    assert "DATASETS.TRAIN" not in printed


def test_one_image(run, tmp_path):  # noqa: F811
    run(source="images/town/b.png")
    assert maps(tmp_path / "out" / "labels").keys() == {"b.png"}


def test_a_supervised_model_has_names(run, names, tmp_path, capsys):  # noqa: F811
    known = ("MODEL.CLASS_NAMES", "('sky', 'car', 'road', 'tree', 'sign')", "TEST.SEM_SEG_MATCHING", "none")
    run(*known)
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert "<input" not in page and "car</h2>" in page
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["sky", "car", "road", "tree", "sign"]
    run("--names", names, *known, status=2)
    assert f"--names {names} is for clusters, but this model has classes: sky, car" in capsys.readouterr().err
    run("--matching", "m.json", *known, status=2)
    assert "--matching m.json is for clusters, but this model has classes: sky, car" in capsys.readouterr().err
    model = ["--config-file", str(tmp_path / "seg.yaml"), "--weights", str(tmp_path / "model.pth")]
    words = [*model, "--name-from", "nothing", "--output", str(tmp_path / "n.json"), *known]
    assert name_clusters.main(words) == 2
    assert "model.pth is of a model with classes, not clusters: sky, car" in capsys.readouterr().err


@pytest.fixture
def labelled(run, tmp_path):  # noqa: F811
    """Labels that follow from the clusters: cluster 0 is sky, 1 and 2 are car, the others are not labelled."""
    (tmp_path / "images" / "a.png").unlink()
    run(output="clusters")
    table = np.array([0, 1, 1, 255, 255], np.uint8)
    for name, labels in maps(tmp_path / "clusters" / "labels").items():
        path = tmp_path / "truth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), table[labels])
    (tmp_path / "truth" / "classes.txt").write_text("sky\ncar\n")
    return f"masks:{tmp_path / 'images'},labels={tmp_path / 'truth'}"


def test_named_by_labels_and_scored(run, labelled, tmp_path, catalog, capsys):  # noqa: F811
    model = ["--config-file", str(tmp_path / "seg.yaml"), "--weights", str(tmp_path / "model.pth")]
    assert name_clusters.main([*model, "--name-from", labelled, "--output", str(tmp_path / "names.json")]) == 0
    names = json.loads((tmp_path / "names.json").read_text())["names"]
    assert names == ["sky", "car", "car", None, None]

    run("--names", tmp_path / "names.json")
    words = ["--maps", str(tmp_path / "out" / "labels"), "--dataset", labelled, "--output", str(tmp_path / "s")]
    assert score_maps.main(words) == 0
    scores = json.loads((tmp_path / "s" / "sem_seg_evaluation.json").read_text())["sem_seg"]
    assert scores["mIoU"] == scores["pACC"] == 100

    assert score_maps.main(["--maps", str(tmp_path), "--dataset", "scenes_tiny"]) == 2  # a set with label maps
    assert "there is no classes.txt in it" in capsys.readouterr().err

    for words, message in (
        (["--name-from", labelled, "--num", "9"], "--num 9 must lie between 1 and the 2 images with labels"),
        (["--name-from", labelled, "--num", "0"], "--num 0 must lie between 1 and the 2 images with labels"),
        (["--name-from", labelled, "--seed", "-1"], "--seed -1 must be at least 0"),
        (["--name-from", labelled, "--output", str(tmp_path)], "--output .* cannot be written: name a file"),
        (["--name-from", "nothing"], "--name-from nothing is not a data set"),
    ):
        assert name_clusters.main([*model, "--output", str(tmp_path / "n.json"), *words]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def four_pixels(tmp_path, catalog):
    """Write truth and map of an image of four pixels; return the name of the data set."""
    for folder, values in (("photos", [[9, 9, 9, 9]]), ("truth", [[0, 0, 1, 1]]), ("maps", [[1, 255, 1, 0]])):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.array(values, np.uint8))
    (tmp_path / "truth" / "classes.txt").write_text("sky\ncar\n")
    (tmp_path / "maps" / "classes.txt").write_text("car\nsky\n")  # another order
    return f"masks:{tmp_path / 'photos'},labels={tmp_path / 'truth'}"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("maps/a.png", [[2, 255, 2, 1]], r"maps/a\.png has the values \[2\]; its classes are 0 to 1, 255 is none"),
        ("maps/a.png", [[1, 255, 1]], r"the map .*maps/a\.png cannot be scored: .*labels are \(1, 4\)"),
        ("truth/a.png", [[255] * 4], r"every pixel has the ignore label .*\[all-ignored\]"),
        ("truth/a.png", [[0, 0, 1, 2]], r"truth/a\.png: \[2\] in 1 pixels.*\[label-value\]"),
    ],
)
def test_values_that_cannot_be_scored(file, values, message, four_pixels, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / file), np.array(values, np.uint8))
    assert score_maps.main(["--maps", str(tmp_path / "maps"), "--dataset", four_pixels]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_images_without_labels_are_counted(four_pixels, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "photos" / "b.png"), np.zeros((1, 4), np.uint8))
    assert score_maps.main(["--maps", str(tmp_path / "maps"), "--dataset", four_pixels]) == 0
    assert "images without a label map, left out: 1" in caplog.text


def test_scores_by_hand(four_pixels, tmp_path, capsys):
    """Truth sky sky car car; the map says sky, ignore, sky, car: sky 1/3, car 1/2, two of four pixels are right."""
    dataset = four_pixels
    register_path_datasets([dataset])
    scores = score_maps.score_maps(tmp_path / "maps", dataset)
    assert scores["IoU-sky"] == pytest.approx(100 / 3) and scores["IoU-car"] == pytest.approx(50)
    assert scores["pACC"] == pytest.approx(50)

    words = ["--maps", str(tmp_path / "maps"), "--dataset"]
    (tmp_path / "maps" / "classes.txt").write_text("car\nkerb\n")
    assert score_maps.main([*words, dataset]) == 2
    assert "classes that the data set lacks: kerb; it has sky, car" in capsys.readouterr().err
    (tmp_path / "maps" / "classes.txt").write_text("car\nsky\n")
    (tmp_path / "maps" / "a.png").unlink()
    assert score_maps.main([*words, dataset]) == 2
    assert "a.png is missing: segment the folder" in capsys.readouterr().err
    assert score_maps.main([*words, "nothing"]) == 2
    assert "--dataset nothing is no data set" in capsys.readouterr().err


def test_maps_of_cityscapes(tmp_path, catalog):
    """The set has its own kind of evaluator; train id 0 is the road."""
    image, truth = tmp_path / "leftImg8bit" / "ulm" / "a_leftImg8bit.png", tmp_path / "gtFine" / "ulm" / "a_gtFine"
    for path in (image, f"{truth}_labelTrainIds.png", f"{truth}_labelIds.png", tmp_path / "maps" / image.name):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((2, 3), np.uint8))
    Path(f"{truth}_polygons.json").write_text("{}")
    (tmp_path / "maps" / "classes.txt").write_text("road\n")
    record = {"file_name": str(image), "sem_seg_file_name": f"{truth}_labelTrainIds.png", "height": 2, "width": 3}
    DatasetCatalog.register("town", lambda: [record])
    MetadataCatalog.get("town").set(
        image_dir=str(tmp_path / "leftImg8bit"),
        gt_dir=str(tmp_path / "gtFine"),
        stuff_classes=["road"],
        ignore_label=255,
        evaluator_type="cityscapes_sem_seg",
    )
    assert (
        score_maps.main(["--maps", str(tmp_path / "maps"), "--dataset", "town", "--output", str(tmp_path / "s")]) == 0
    )
    assert json.loads((tmp_path / "s" / "sem_seg_evaluation.json").read_text())["sem_seg"]["pACC"] == 100


def test_maps_of_a_set_with_two_folders_of_images(tmp_path, catalog):
    """Cityscapes' 7 groups: label id 7, road, is in the first, 11, building, in the second; maps lie as images do."""
    for group, (split, label) in enumerate((("val", 7), ("train", 11))):
        for folder, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = tmp_path / folder / split / "ulm" / f"{split}_{ending}.png"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), np.full((2, 3), label, np.uint8))
        path = tmp_path / "maps" / split / "ulm" / f"{split}_leftImg8bit.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((2, 3), group, np.uint8))
    (tmp_path / "maps" / "classes.txt").write_text("flat\nconstruction\n")
    classes = cityscapes27.CITYSCAPES7_CLASSES
    cityscapes27._register(tmp_path, "ulm", classes, [[0, 0, 0]] * 7, cityscapes27.cityscapes7_label_map())
    assert score_maps.score_maps(tmp_path / "maps", "ulm_val")["pACC"] == 100
