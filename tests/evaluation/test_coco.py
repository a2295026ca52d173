import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask

from densesiam_d2.evaluation.coco import RepairedCOCOEvaluator
from tests.data_trees import real_data
from tests.evaluation.processes import in_two_processes

NAME = "test_coco128"


@pytest.fixture(scope="module")
def dataset_dicts():
    root = real_data("coco128")
    register_coco_instances(NAME, {}, str(root / "instances.json"), str(root / "images"))
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def predicted(d, shift=0.0):
    boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in d["annotations"]]
    boxes = torch.tensor(boxes).reshape(-1, 4)
    instances = Instances(
        (d["height"], d["width"]),
        pred_boxes=Boxes(boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)),
        pred_classes=torch.tensor([a["category_id"] for a in d["annotations"]]),
        scores=torch.ones(len(boxes)),
    )
    if shift == 0:
        masks = [polygons_to_bitmask(a["segmentation"], d["height"], d["width"]) for a in d["annotations"]]
        instances.pred_masks = [torch.from_numpy(mask) for mask in masks]
    return instances


def evaluate(cfg, dataset_dicts, **kwargs):
    evaluator = RepairedCOCOEvaluator(cfg, NAME)
    evaluator.reset()
    for d in dataset_dicts:
        evaluator.process([d], [{"instances": predicted(d, **kwargs)}])
    return evaluator.evaluate()


def test_ground_truth_scores_100(cfg, dataset_dicts):
    assert sum(len(d["annotations"]) for d in dataset_dicts) == 929
    results = evaluate(cfg, dataset_dicts)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)


def test_two_processes_score_as_one(cfg, dataset_dicts):
    main, other = in_two_processes(lambda rank: evaluate(cfg, dataset_dicts[rank::2]))
    assert main["bbox"]["AP"] == pytest.approx(100) and main["segm"]["AP"] == pytest.approx(100)
    assert other == {}


def test_shifted_boxes_score_by_their_iou(cfg, dataset_dicts):
    # Shifted by a tenth of width and height: IoU = 0.81 / (2 - 0.81) = 0.68; right at 0.5, 0.55, 0.6, 0.65 of 10.
    results = evaluate(cfg, dataset_dicts, shift=0.1)
    assert results["bbox"]["AP50"] > 95 and results["bbox"]["AP75"] < 5
    assert results["bbox"]["AP"] == pytest.approx(40, abs=3)


def test_the_repaired_evaluator_is_set_up_like_the_stock_one(dataset_dicts, cfg, tmp_path):
    """It does not call the stock __init__; with another detectron2 that has more attributes this test fails."""
    stock, ours = (
        vars(e) for e in (COCOEvaluator(NAME, output_dir=tmp_path), RepairedCOCOEvaluator(cfg, NAME, tmp_path))
    )
    assert stock.keys() <= ours.keys()
    for name in stock.keys() - {"_logger", "_coco_api"}:
        assert ours[name] == stock[name], name


def test_a_model_that_finds_nothing_has_scores_of_masks_too(dataset_dicts, cfg, tmp_path):
    cfg.MODEL.MASK_ON = True
    evaluator = RepairedCOCOEvaluator(cfg, NAME, tmp_path)
    evaluator.reset()
    for d in dataset_dicts:
        evaluator.process(
            [d], [{"instances": Instances((d["height"], d["width"]), pred_boxes=Boxes(torch.zeros(0, 4)))}]
        )
    results = evaluator.evaluate()
    assert results.keys() == {"bbox", "segm"}
    for scores in results.values():
        assert all(scores[name] == 0 for name in ("AP", "AP50", "APs", "APm", "APl", "AP-person"))
        assert math.isnan(scores["AP-toaster"])  # not in the ground truth
