import os

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from densesiam_d2.data.detection_mapper import DetectionDatasetMapper
from densesiam_d2.data.image_io import UnreadableImageError
from tests.labels.coco_files import coco, rectangle, write
from tests.labels.test_coco_json import encode


@pytest.fixture
def mapper():
    return DetectionDatasetMapper(get_cfg(), is_train=False)


def test_ordinary_images_are_mapped_as_detectron2_does(mapper, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 20, "width": 30}
    expected = DatasetMapper(get_cfg(), is_train=False)(dict(record))
    assert (mapper(dict(record))["image"] == expected["image"]).all()


def test_16_bit_images_are_refused(mapper, tmp_path):
    Image.fromarray(np.full((20, 30), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UnreadableImageError, match=r"deep\.png: pixels of mode I;16 .* convert the file to 8 bit"):
        mapper({"file_name": str(tmp_path / "deep.png")})


def test_pipes_are_refused(mapper, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match=r"pipe\.jpg: not a regular file"):
        mapper({"file_name": str(tmp_path / "pipe.jpg")})


def test_addresses_are_not_fetched(mapper):
    with pytest.raises(FileNotFoundError, match=r"http:"):
        mapper({"file_name": "http://127.0.0.1:9/a.jpg"})


# ---- masks ----


def map_masks(tmp_path, *segmentations, crowd=()):
    """Map an image of 96 x 64 pixels with an annotation for each segmentation, and return its instances."""
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (128,), "none"  # twice as large
    write(coco(), tmp_path)
    annotations = [
        {"bbox": [10, 10, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": int(i in crowd)}
        | ({} if segmentation is None else {"segmentation": segmentation})
        for i, segmentation in enumerate(segmentations)
    ]
    record = {"file_name": str(tmp_path / "images" / "p1.png"), "height": 64, "width": 96, "annotations": annotations}
    return DetectionDatasetMapper(cfg, is_train=True)(record)["instances"]


POLYGON = [rectangle(10, 10, 40, 30)]
RLE = encode((10, 10, 40, 30))


def test_polygons_stay_polygons(tmp_path):
    masks = map_masks(tmp_path, POLYGON, POLYGON).gt_masks
    assert isinstance(masks, PolygonMasks) and masks.area().tolist() == [80 * 60] * 2


def test_run_lengths_and_polygons_of_one_image_become_bitmasks(tmp_path):
    masks = map_masks(tmp_path, POLYGON, RLE).gt_masks
    assert isinstance(masks, BitMasks)
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [80 * 60] * 2
    assert (masks.tensor[0] == masks.tensor[1]).all()


def test_crowds_do_not_change_the_others(tmp_path):
    instances = map_masks(tmp_path, POLYGON, RLE, crowd=[1])
    assert isinstance(instances.gt_masks, PolygonMasks) and len(instances) == 1


def test_annotations_without_a_mask_are_left_out(tmp_path):
    assert map_masks(tmp_path, POLYGON, None, RLE).gt_classes.tolist() == [0, 2]
