"""Ground truth given as predictions scores 100 on every set that passes the look at its labels."""

import copy

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.labels.coco_json import read_coco
from tests.data_trees import real_data, write_voc_tree
from tests.labels.coco_files import coco, rectangle, write

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.MASK_ON = True
    return cfg


def register(path, images):
    name = f"coco:{path},images={images}"
    register_path_datasets([name])
    return name


def to_mask(segmentation, height, width):
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return polygons_to_bitmask(segmentation, height, width)


def predict(record, classes=None, shift=0.0, masks=True) -> Instances:
    """Return the annotations of a record as predictions; ``classes`` turns their numbers into the model's."""
    annotations = record["annotations"]
    found = Instances((record["height"], record["width"]))
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.tensor(boxes).reshape(-1, 4).float()
    found.pred_boxes = Boxes(boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2))
    found.scores = torch.ones(len(annotations))
    found.pred_classes = torch.tensor(
        [a["category_id"] if classes is None else classes[a["category_id"]] for a in annotations]
    )
    if masks:
        masks = [torch.from_numpy(to_mask(a["segmentation"], *found.image_size)) for a in annotations]
        found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *found.image_size, dtype=torch.bool)
    return found


def score(evaluator, records, **options):
    evaluator.reset()
    for record in records:
        evaluator.process([record], [{"instances": predict(record, **options)}])
    return evaluator.evaluate()


def perfect(cfg, name, **options):
    records = DatasetCatalog.get(name)
    return {task: scores["AP"] for task, scores in score(build_evaluator(cfg, name), records, **options).items()}


def test_ids_from_0(cfg, tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    name = register(write(content, tmp_path), tmp_path / "images")
    assert perfect(cfg, name) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    theirs = score(COCOEvaluator(name), DatasetCatalog.get(name))  # what this is about
    assert theirs["bbox"]["AP"] < 90


def test_repaired_files(cfg, tmp_path):
    content = coco(6)
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    content["annotations"][2]["segmentation"] = mask_util.frPyObjects([rectangle(10, 10, 40, 30)], 64, 96)[0]
    content["annotations"][2]["segmentation"]["counts"] = content["annotations"][2]["segmentation"]["counts"].decode()
    content["annotations"][3]["bbox"] = [55, 20, 60, 60]
    name = register(write(content, tmp_path), tmp_path / "images")
    records = DatasetCatalog.get(name)
    for record in records:  # training leaves an annotation without mask out
        record["annotations"] = [a for a in record["annotations"] if "segmentation" in a]
    assert sum(len(r["annotations"]) for r in records) == 10
    scores = score(build_evaluator(cfg, name), records)
    assert [scores[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])


def test_many_instances(cfg, caplog):
    nuclei = real_data("nuclei")
    name = register(nuclei / "instances_val.json", nuclei / "images" / "val")
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    assert perfect(cfg, name) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    assert any("15 images have more instances (up to 375)" in message for message in caplog.messages)


def test_limit_follows_the_config(cfg, tmp_path, caplog):
    name = register(write(coco(), tmp_path), tmp_path / "images")
    caplog.set_level("INFO")
    for limit, expected in ((20, 100), (100, 100), (250, 250)):
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
        assert build_evaluator(cfg, name)._max_dets_per_image == [1, 10, expected]
    assert sum("up to 250 detections of an image are scored" in m for m in caplog.messages) == 1


def test_scores_of_a_sound_file_are_those_of_detectron2(cfg):
    root = real_data("coco128")
    name = register(root / "instances.json", root / "images")
    records = DatasetCatalog.get(name)
    ours = score(build_evaluator(cfg, name), records, shift=0.1, masks=False)
    theirs = score(COCOEvaluator(name), records, shift=0.1, masks=False)
    assert ours["bbox"] == pytest.approx(theirs["bbox"], nan_ok=True) and 20 < ours["bbox"]["AP"] < 60


def test_subsets_are_scored_alone(cfg, tmp_path):
    path = write(coco(8), tmp_path)
    name = f"coco:{path},images={tmp_path}/images,subset=3,seed=2"
    register_path_datasets([name])
    assert len(DatasetCatalog.get(name)) == 3
    assert perfect(cfg, name) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


@pytest.mark.parametrize("by", ["CLASS_NAMES", "TRAIN"])
def test_classes_of_another_order_are_scored_by_name(by, cfg, tmp_path):
    content = coco()
    train = register(write(content, tmp_path), tmp_path / "images")
    turned = copy.deepcopy(content)
    turned["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    turned["annotations"] = [a for a in turned["annotations"] if a["category_id"] == 1 or a["image_id"] == 1]
    for annotation in turned["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    test = register(write(turned, tmp_path, "val.json"), tmp_path / "images")
    DatasetCatalog.get(train)
    if by == "TRAIN":
        cfg.DATASETS.TRAIN = (train,)
    else:
        cfg.MODEL.CLASS_NAMES = ["red", "blue"]
    assert perfect(cfg, test, classes=[1, 0]) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    cfg.DATASETS.TRAIN, cfg.MODEL.CLASS_NAMES = (), []
    assert perfect(cfg, test, classes=[1, 0])["bbox"] == pytest.approx(0)  # what this is about


def test_other_classes_than_the_models(cfg, tmp_path):
    name = register(write(coco(), tmp_path), tmp_path / "images")
    cfg.MODEL.CLASS_NAMES = ["red", "blue", "green"]
    with pytest.raises(
        ValueError, match=r"MODEL\.CLASS_NAMES are not its classes: 3 classes .* only in training: green"
    ):
        perfect(cfg, name)


def test_absent_classes_are_named(cfg, tmp_path, caplog):
    content = coco()
    content["categories"].append({"id": 3, "name": "green"})
    name = register(write(content, tmp_path), tmp_path / "images")
    assert build_evaluator(cfg, name).absent_classes == ["green"]
    assert any("1 classes have no instance: green" in message for message in caplog.messages)


def test_ground_truth_that_means_nothing_is_refused(cfg, tmp_path):
    content = coco()
    content["annotations"][0]["category_id"] = 5
    path = write(content, tmp_path)
    name = register(path, tmp_path / "images")
    with pytest.raises(ValueError, match="not among the categories"):
        build_evaluator(cfg, name)
    assert read_coco(path)[1].of("error")


# ---- VOC ----


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    write_voc_tree(real_data("coco128"), root)
    register_pascal_voc("voc", str(root), "test", 2012)
    MetadataCatalog.get("voc").evaluator_type = "pascal_voc"
    return root


def test_voc_with_and_without_difficult(voc, cfg):
    names = {
        line.split("<name>")[1].split("<")[0]
        for f in (voc / "Annotations").iterdir()
        for line in f.read_text().split("\n")
        if "<name>" in line
        for line in line.split("<object>")[1:]
    }
    cfg.MODEL.MASK_ON = False
    evaluator = build_evaluator(cfg, "voc")
    assert set(evaluator.absent_classes) == set(CLASS_NAMES) - names and evaluator.absent_classes
    assert score(evaluator, DatasetCatalog.get("voc"), masks=False)["bbox"] == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100}
    )
    for file in (voc / "Annotations").iterdir():
        text = file.read_text()
        for tag in ("difficult", "truncated"):
            text = text.replace(f"<{tag}>0</{tag}>", "")
        file.write_text(text.replace("<pose>Unspecified</pose>", ""))
    assert perfect(cfg, "voc", masks=False) == {"bbox": pytest.approx(100)}


def test_voc_classes_by_name(voc, cfg):
    turned = list(reversed(CLASS_NAMES))
    cfg.MODEL.CLASS_NAMES = turned
    classes = [turned.index(name) for name in CLASS_NAMES]
    assert perfect(cfg, "voc", masks=False, classes=classes) == {"bbox": pytest.approx(100)}
