import json
import xml.etree.ElementTree as ET

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from detectron2.structures import Boxes, Instances

from densesiam_d2.evaluation.build import build_evaluator
from tests.data_trees import real_data, write_voc_tree

NAME = "test_coco128_voc"


@pytest.fixture(scope="module", params=[2007, 2012])
def tree(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc_tree(real_data("coco128"), root)
    names = {name.text for file in (root / "Annotations").glob("*.xml") for name in ET.parse(file).iter("name")}
    # detectron2 gives AP 0 to a class without objects, so only the classes that occur take part.
    register_pascal_voc(NAME, str(root), "test", request.param, [name for name in CLASS_NAMES if name in names])
    MetadataCatalog.get(NAME).evaluator_type = "pascal_voc"
    yield root
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(cfg, dataset_dicts, shift=0.0):
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    for d in dataset_dicts:
        boxes = torch.tensor([a["bbox"] for a in d["annotations"]])
        classes = torch.tensor([a["category_id"] for a in d["annotations"]])
        instances = Instances(
            (d["height"], d["width"]),
            pred_boxes=Boxes(boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)),
            pred_classes=classes,
            scores=torch.ones(len(boxes)),
        )
        evaluator.process([d], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_tree_holds_the_voc_objects_of_coco128(tree):
    coco = json.loads((real_data("coco128") / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    people = sum(names[a["category_id"]] == "person" for a in coco["annotations"])
    sofas = sum(names[a["category_id"]] == "couch" for a in coco["annotations"])
    classes = MetadataCatalog.get(NAME).thing_classes
    loaded = [classes[a["category_id"]] for d in DatasetCatalog.get(NAME) for a in d["annotations"]]
    assert loaded.count("person") == people > 0 and loaded.count("sofa") == sofas > 0


def test_ground_truth_scores_100(cfg, tree):
    assert evaluate(cfg, DatasetCatalog.get(NAME)) == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})


def test_shifted_boxes_score_by_their_iou(cfg, tree):
    # Shifted by a tenth of width and height: IoU = 0.81 / (2 - 0.81) = 0.68, right for 0.5 and wrong for 0.75.
    results = evaluate(cfg, DatasetCatalog.get(NAME), shift=0.1)
    assert results["AP50"] > 90 and results["AP75"] < 10
