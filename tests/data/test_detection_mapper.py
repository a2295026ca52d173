import os

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.detection_mapper import LOOKUP_FROM, DetectionDatasetMapper
from densesiam_d2.data.mask_lookup import MaskLookup
from densesiam_d2.image_io import UnreadableImageError, displayed_size
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


def test_16_bit_images_are_scaled(tmp_path):
    Image.fromarray(np.full((20, 30), 2570, np.uint16)).save(tmp_path / "deep.png")
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.INPUT.WHITE_LEVEL = 4095
    record = {"file_name": str(tmp_path / "deep.png")}
    assert (DetectionDatasetMapper(get_cfg(), is_train=False)(record)["image"] == 10).all()
    assert (DetectionDatasetMapper(cfg, is_train=False)(record)["image"] == 160).all()  # 2570 * 255 / 4095


# EXIF orientation -> what a file stores of an image that is shown as s (EXIF 2.32, tag 0x0112).
STORED = {
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.T,
    6: np.rot90,
    7: lambda s: s[::-1, ::-1].T,
    8: lambda s: np.rot90(s, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_turned_images_are_read_as_a_viewer_shows_them(orientation, suffix, tmp_path):
    path, exif, shown = tmp_path / f"turned.{suffix}", Image.Exif(), np.zeros((64, 96), np.uint8)
    exif[0x0112] = orientation
    shown[:32, :16] = 200  # a corner
    Image.fromarray(np.ascontiguousarray(STORED[orientation](shown))).save(path, exif=exif)
    mapper = DetectionDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    image = mapper({"file_name": str(path), "width": 96, "height": 64})["image"].numpy()
    assert np.abs(image.astype(int) - shown).max() < 20  # JPEG is not exact
    assert displayed_size(path) == (96, 64)


def test_damaged_images_are_named(mapper, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-3000])
    with pytest.raises(UnreadableImageError, match=r"cannot read .*cut\.jpg: image file is truncated"):
        mapper({"file_name": str(tmp_path / "cut.jpg")})


def test_panoptic_sets_get_their_label_map_too(tmp_path):
    write(coco(), tmp_path)
    label = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96) % 7
    Image.fromarray(label).save(tmp_path / "label.png")
    record = {"file_name": str(tmp_path / "images" / "p1.png"), "sem_seg_file_name": str(tmp_path / "label.png")}
    mapped = DetectionDatasetMapper(is_train=True, augmentations=[], image_format="BGR")(record)
    assert (mapped["sem_seg"].numpy() == label).all() and mapped["sem_seg"].dtype == torch.int64


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


def test_an_image_without_masks_is_cropped(tmp_path):
    content = coco(1)
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    write(content, tmp_path)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.CROP.ENABLED = True, True
    mapper = DetectionDatasetMapper(cfg, is_train=True)
    for annotations in ([{"bbox": [10, 10, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}], []):
        record = {"file_name": str(tmp_path / "images" / "p1.png"), "height": 64, "width": 96, "image_id": 1}
        assert len(mapper({**record, "annotations": annotations})["instances"]) == 0
    assert mapper.recompute_boxes


@pytest.mark.parametrize(
    "augmentations",
    [
        [T.RandomCrop("relative", (0.6, 0.7)), T.ResizeShortestEdge((50, 90), sample_style="range"), T.RandomFlip()],
        [T.RandomRotation((-40, 40)), T.RandomFlip(horizontal=False, vertical=True), T.RandomBrightness(0.5, 1.5)],
        [T.RandomExtent((0.6, 1.4), (0.2, 0.2))],  # detectron2 interpolates masks between pixels here
        [T.FixedSizeCrop((90, 110), seg_pad_value=255)],
    ],
)
def test_masks_looked_up_are_those_transformed_one_by_one(augmentations):
    rng = np.random.default_rng(0)
    masks = [np.asfortranarray(rng.random((64, 96)) < 0.5).astype(np.uint8) for _ in range(3)]
    for seed in range(10):
        np.random.seed(seed)
        transforms = T.AugmentationList(augmentations)(T.AugInput(np.zeros((64, 96, 3), np.uint8)))
        lookup = MaskLookup(transforms)
        for mask in (*masks, np.ascontiguousarray(masks[0]), masks[1][:, ::-1]):
            assert (lookup.apply_segmentation(mask) == transforms.apply_segmentation(mask)).all()
        box = np.array([[3.0, 4.0, 50.0, 60.0]])
        assert (lookup.apply_box(box) == transforms.apply_box(box)).all()


def test_a_transform_of_the_users_moves_each_mask():
    class Half(T.Transform):
        def apply_image(self, image):
            return image // 2

        apply_coords = staticmethod(lambda coordinates: coordinates)

    assert (MaskLookup(T.TransformList([Half()])).apply_segmentation(np.full((4, 5), 8, np.uint8)) == 4).all()


def test_images_with_many_masks_are_mapped_as_detectron2_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotations = [
        {
            "bbox": [i, i, 20, 20],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": i,
            "segmentation": encode((i, i, 20, 20)),
        }
        for i in range(LOOKUP_FROM)
    ]
    record = {"file_name": str(tmp_path / "a.png"), "height": 64, "width": 96, "annotations": annotations}
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.CROP.ENABLED, cfg.INPUT.MASK_FORMAT = True, True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = (100,), "relative", [0.4, 0.4]
    for seed in range(5):
        mapped = []
        for mapper in (DatasetMapper(cfg), DetectionDatasetMapper(cfg, is_train=True)):
            np.random.seed(seed)
            mapped.append(mapper(record)["instances"])
        theirs, ours = mapped
        assert torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert ours.gt_classes.tolist() == theirs.gt_classes.tolist()
