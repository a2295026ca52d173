"""Ground truth given as predictions scores 100 on every set that passes the look at its labels."""

import copy
import json
from collections import Counter

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.labels.coco_json import read_coco
from tests.data_trees import real_data
from tests.evaluation.truth_as_predictions import predict, score
from tests.labels.coco_files import coco, rectangle, write

pytestmark = pytest.mark.usefixtures("catalog")


def register(path, images):
    name = f"coco:{path},images={images}"
    register_path_datasets([name])
    return name


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


def test_files_that_the_official_code_cannot_read(cfg, tmp_path):
    """No annotation has an id, and the file begins with a byte order mark."""
    content = coco()
    for annotation in content["annotations"]:
        del annotation["id"]
    path = write(content, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    name = register(path, tmp_path / "images")
    assert perfect(cfg, name) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


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
    assert sum(len(r["annotations"]) for r in records) == 11  # of 12
    scores = score(build_evaluator(cfg, name), records)
    assert [scores[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])


def instances_per_image(path):
    return Counter(a["image_id"] for a in json.loads(path.read_text())["annotations"]).values()


def test_many_instances(cfg, caplog):
    nuclei = real_data("nuclei")
    name = register(nuclei / "instances_val.json", nuclei / "images" / "val")
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    assert perfect(cfg, name) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    counts = instances_per_image(nuclei / "instances_val.json")
    crowded, most = sum(count > 100 for count in counts), max(counts)
    assert crowded > 1
    warning = (
        f"{crowded} images have more instances than TEST.DETECTIONS_PER_IMAGE 100; to find them all, set it to {most}"
    )
    assert f"{name}: {warning}" in caplog.messages


@pytest.fixture
def crowded(tmp_path):
    """Register one image with 150 instances of one class."""
    content = coco(1)
    boxes = [[6.0 * (i % 15), 6.0 * (i // 15), 5.0, 5.0] for i in range(150)]
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": [rectangle(*box)]}
        for i, box in enumerate(boxes, start=1)
    ]
    return register(write(content, tmp_path), tmp_path / "images")


def test_150_instances_in_an_image(crowded, cfg, caplog):
    caplog.set_level("INFO")
    assert perfect(cfg, crowded) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    assert f"{crowded}: up to 150 detections of an image are scored (COCO: 100)" in caplog.messages
    # What this is about: of 100 detections all are right, recall ends at 2/3. Of the 101 thresholds of recall 0, 0.01,
    # ... 1, those up to 0.66 have precision 1, the others 0.
    evaluator = build_evaluator(cfg, crowded)
    evaluator._max_dets_per_image = [1, 10, 100]
    assert score(evaluator, DatasetCatalog.get(crowded))["bbox"]["AP"] == pytest.approx(100 * 67 / 101)


def test_a_crowd_is_nothing_to_find(cfg, tmp_path, caplog):
    content = coco(1)
    content["annotations"][0]["iscrowd"] = 1
    name = register(write(content, tmp_path), tmp_path / "images")
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    assert build_evaluator(cfg, name).absent_classes == ["red"]
    assert not any("TEST.DETECTIONS_PER_IMAGE" in message for message in caplog.messages)


def test_limits_above_100_by_the_official_code(cfg):
    """Boxes shifted by up to a fifth and scored at random; COCO's own evaluation with as many detections an image."""
    nuclei = real_data("nuclei")
    name = register(nuclei / "instances_val.json", nuclei / "images" / "val")
    records = DatasetCatalog.get(name)
    generator = torch.Generator().manual_seed(0)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    results = []
    for record in records:
        found = predict(record, masks=False)
        boxes = found.pred_boxes.tensor
        boxes += 0.2 * torch.rand(len(boxes), 1, generator=generator) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        found.scores = torch.rand(len(found), generator=generator)
        evaluator.process([record], [{"instances": found}])
        for (x0, y0, x1, y1), value in zip(boxes.tolist(), found.scores.tolist(), strict=True):
            result = {"image_id": record["image_id"], "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            results.append({**result, "score": value})
    ours = evaluator.evaluate()["bbox"]

    truth = COCO(str(nuclei / "instances_val.json"))
    assert list(truth.cats) == [1] and 0 not in truth.anns
    official = COCOeval(truth, truth.loadRes(results), "bbox")
    official.params.maxDets = [1, 10, max(instances_per_image(nuclei / "instances_val.json"))]
    official.evaluate()
    official.accumulate()
    precision = official.eval["precision"][:, :, 0, :, -1]  # (thresholds, recalls, areas)
    assert ours["AP"] == pytest.approx(100 * precision[..., 0].mean()) and 20 < ours["AP"] < 80
    assert ours["AP50"] == pytest.approx(100 * precision[0, :, 0].mean())
    assert ours["APs"] == pytest.approx(100 * precision[..., 1].mean())


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


def test_other_classes_are_found_before_the_first_image(cfg, tmp_path):
    name = register(write(coco(), tmp_path), tmp_path / "images")
    cfg.MODEL.CLASS_NAMES = ["red", "green"]
    with pytest.raises(ValueError, match="only in training: green; only in the test set: blue"):
        build_evaluator(cfg, name)


def test_training_set_with_other_classes(cfg, tmp_path, caplog):
    content = coco()
    test = register(write(content, tmp_path, "test.json"), tmp_path / "images")
    content["categories"][1]["name"] = "green"
    train = register(write(content, tmp_path), tmp_path / "images")
    DatasetCatalog.get(train)
    cfg.DATASETS.TRAIN = (train,)
    assert perfect(cfg, test) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    (message,) = [m for m in caplog.messages if "outputs are taken in the order red, blue" in m]
    assert message.startswith(f"{test}: its classes are not those of {train}")


def test_a_class_that_the_test_set_does_not_have(cfg, tmp_path):
    name = register(write(coco(), tmp_path), tmp_path / "images")
    with pytest.raises(ValueError, match=rf"{name} has 2 classes, but the model predicts number 2 \(from 0\)"):
        perfect(cfg, name, classes=[0, 2])


def test_absent_classes_are_named(cfg, tmp_path, caplog):
    content = coco()
    content["categories"].append({"id": 3, "name": "green"})
    name = register(write(content, tmp_path), tmp_path / "images")
    assert build_evaluator(cfg, name).absent_classes == ["green"]
    assert any("classes without any instance (1): green" in message for message in caplog.messages)


def test_records_of_python_are_converted_each_time(cfg, tmp_path):
    """Dicts without a file: between two evaluations an image and a class come to be."""
    box = {"bbox": [10, 10, 50, 40], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [rectangle(10, 10, 40, 30)]}
    records = [
        {"file_name": f"{i}.png", "image_id": i, "height": 64, "width": 96, "annotations": [{**box, "category_id": i}]}
        for i in range(2)
    ]
    DatasetCatalog.register("python", lambda: records)
    metadata = MetadataCatalog.get("python").set(thing_classes=["red", "blue"], evaluator_type="coco")
    for part, absent in ((records[:1], ["blue"]), (records, [])):
        DatasetCatalog["python"] = lambda part=part: part
        evaluator = build_evaluator(cfg, "python", str(tmp_path))
        assert evaluator.absent_classes == absent
        assert [scores["AP"] for scores in score(evaluator, part).values()] == pytest.approx([100, 100])
        assert not hasattr(metadata, "json_file")
    cfg.MODEL.CLASS_NAMES = ["blue", "red"]
    scores = score(build_evaluator(cfg, "python", str(tmp_path)), records, classes=[1, 0])
    assert scores["segm"]["AP-blue"] == pytest.approx(100)


def test_annotations_that_are_not_published(cfg, tmp_path):
    """As in COCO's test-dev: predictions are written, in the file's ids of categories, and nothing is scored."""
    content = coco()
    content["categories"] = [{"id": 7, "name": "red"}, {"id": 9, "name": "blue"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 7, 2: 9}[annotation["category_id"]]
    records = DatasetCatalog.get(register(write(content, tmp_path), tmp_path / "images"))
    del content["annotations"]
    path = write(content, tmp_path, "test-dev.json")
    MetadataCatalog.get("test_dev").set(
        **{"json_file": str(path), "evaluator_type": "coco", "thing_classes": ["red", "blue"]},
        thing_dataset_id_to_contiguous_id={7: 0, 9: 1},
    )
    assert score(build_evaluator(cfg, "test_dev", str(tmp_path / "out")), records) == {}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [w["category_id"] for w in written] == [7, 9] * 3
    MetadataCatalog.remove("test_dev")


def test_ground_truth_that_means_nothing_is_refused(cfg, tmp_path):
    content = coco()
    content["annotations"][0]["category_id"] = 5
    path = write(content, tmp_path)
    name = register(path, tmp_path / "images")
    with pytest.raises(ValueError, match="not among the categories"):
        build_evaluator(cfg, name)
    assert read_coco(path)[1].of("error")
