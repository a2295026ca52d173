import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from PIL import Image

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.sem_seg_mapper import SemSegDatasetMapper

from .photos import ROOT, smooth_image


@pytest.fixture
def dataset(tmp_path):
    """One 48 x 64 image whose left half has the raw label 7 (class 1) and right half 9 (class 0), below a void row."""
    image = smooth_image(48, 64)
    label = np.full((48, 64), 7, np.uint8)
    label[:, 32:] = 9
    label[0] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "a_label.png")
    label_map = [255] * 256
    label_map[7], label_map[9] = 1, 0
    MetadataCatalog.get("tiny_mapped").set(stuff_classes=["x", "y"], ignore_label=255, label_map=label_map)
    MetadataCatalog.get("tiny_plain").set(stuff_classes=["x", "y"], ignore_label=255)
    yield {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "a_label.png")}, image
    for name in ("tiny_mapped", "tiny_plain"):
        MetadataCatalog.remove(name)


def make_cfg():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny_mapped",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def test_training_maps_labels(dataset):
    record, image = dataset
    out = SemSegDatasetMapper(make_cfg())(record)
    np.testing.assert_array_equal(out["image"].numpy(), image.transpose(2, 0, 1))
    assert out["sem_seg"].dtype == torch.int64 and out["sem_seg"].shape == (48, 64)
    assert torch.all(out["sem_seg"][0] == 255)
    assert torch.all(out["sem_seg"][1:, :32] == 1) and torch.all(out["sem_seg"][1:, 32:] == 0)
    assert (out["height"], out["width"]) == (48, 64)
    assert "sem_seg_file_name" in record  # the caller's dict is not touched


def test_instances_are_foreground(dataset):
    record, _ = dataset
    del record["sem_seg_file_name"]
    record["annotations"] = [{"segmentation": [[8.0, 4.0, 20.0, 4.0, 20.0, 10.0, 8.0, 10.0]], "category_id": 5}]
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = ("tiny_plain",)
    out = SemSegDatasetMapper(cfg)(record)
    expected = torch.zeros(48, 64, dtype=torch.int64)
    expected[4:10, 8:20] = 1
    assert torch.equal(out["sem_seg"], expected) and "annotations" not in out


def test_white_level(dataset):
    record, image = dataset
    cfg = make_cfg()
    cfg.INPUT.WHITE_LEVEL = 4095
    Image.fromarray(np.full(image.shape[:2], 4095, np.uint16)).save(record["file_name"])
    assert (SemSegDatasetMapper(cfg)(record)["image"] == 255).all()


def test_bgr(dataset):
    record, image = dataset
    cfg = make_cfg()
    cfg.INPUT.FORMAT = "BGR"
    np.testing.assert_array_equal(
        SemSegDatasetMapper(cfg)(record)["image"].numpy(), image[:, :, ::-1].transpose(2, 0, 1)
    )


def test_training_flips_and_crops_image_and_label_together(dataset):
    record, _ = dataset
    cfg = make_cfg()
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [24, 24]
    # The image tells its label: paint it by the label.
    label = np.asarray(Image.open(record["sem_seg_file_name"]))
    Image.fromarray(np.repeat(label[:, :, None], 3, axis=2)).save(record["file_name"])
    mapper = SemSegDatasetMapper(cfg)
    np.random.seed(0)
    flipped = 0
    for _ in range(20):
        out = mapper(record)
        assert out["sem_seg"].shape == (24, 24)
        raw = torch.tensor([9, 7])[out["sem_seg"].clamp(max=1)]
        raw[out["sem_seg"] == 255] = 200
        assert torch.equal(out["image"][0].long(), raw)
        row = out["sem_seg"][-1]
        flipped += int(row[0] == 0 and row[-1] == 1)
    assert flipped > 0


def test_category_constraint_sees_classes(dataset):
    # At most 60 % of one class: a 24-pixel crop must show both, which raw void pixels must not spoil.
    record, _ = dataset
    cfg = make_cfg()
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [24, 24]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.6
    mapper = SemSegDatasetMapper(cfg)
    np.random.seed(0)
    shares = [(mapper(record)["sem_seg"][1:] == 1).float().mean() for _ in range(30)]
    assert sum(0.35 < share < 0.65 for share in shares) > 22  # a free crop manages this in 5 to 8 of 41 places


def test_color_distortion_changes_the_image_only(dataset):
    record, image = dataset
    cfg = make_cfg()
    cfg.INPUT.COLOR_AUG_SSD = True
    out = SemSegDatasetMapper(cfg)(record)
    assert not np.array_equal(out["image"].numpy(), image.transpose(2, 0, 1))
    assert set(out["sem_seg"].unique().tolist()) == {0, 1, 255}


def test_whole_images_in_testing_equal_detectron2(dataset):
    record, _ = dataset
    cfg = make_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 96
    out = SemSegDatasetMapper(cfg, is_train=False)(record)
    stock = DatasetMapper(cfg, is_train=False)({"file_name": record["file_name"]})
    assert torch.equal(out["image"], stock["image"]) and out["image"].shape == (3, 96, 128)
    assert (out["height"], out["width"]) == (48, 64) == (stock["height"], stock["width"])
    assert "sem_seg" not in out and "sem_seg_target" not in out


def test_center_crops_in_testing(dataset):
    record, _ = dataset
    cfg = make_cfg()
    cfg.TEST.CENTER_CROP_SIZE = 24
    out = SemSegDatasetMapper(cfg, False, ["tiny_mapped"])(record)
    # 48 x 64 -> 24 x 32 -> columns 4 to 28, of which the first 12 are left of the middle (16).
    assert out["image"].shape == (3, 24, 24) and (out["height"], out["width"]) == (24, 24)
    target = out["sem_seg_target"]
    assert target.dtype == torch.int64 and target.shape == (24, 24)
    assert torch.all(target[1:, :12] == 1) and torch.all(target[1:, 12:] == 0)


def test_wrong_labels_name_file_and_values(dataset):
    record, _ = dataset
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = ("tiny_plain",)
    with pytest.raises(
        ValueError, match=r"a_label\.png has the values \[7, 9, 200\] in 3072 pixels; classes are 0 to 1"
    ):
        SemSegDatasetMapper(cfg)(record)
    Image.new("L", (60, 48)).save(record["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"a_label\.png has \(48, 60\) pixels"):
        SemSegDatasetMapper(cfg)(record)
    with pytest.raises(ValueError, match="no label map for"):
        SemSegDatasetMapper(cfg)({"file_name": record["file_name"]})


def test_wrong_configs(dataset):
    cfg = make_cfg()
    cfg.DATASETS.TRAIN = ("tiny_mapped", "tiny_plain")
    with pytest.raises(ValueError, match="same 'label_map': tiny_mapped and tiny_plain differ"):
        SemSegDatasetMapper(cfg)
    cfg = make_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    with pytest.raises(ValueError, match="NUM_CLASSES 1 is 2"):
        SemSegDatasetMapper(cfg)
    cfg = make_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 0
    with pytest.raises(ValueError, match="IGNORE_VALUE 0 is 255"):
        SemSegDatasetMapper(cfg)
    cfg = make_cfg()
    cfg.INPUT.FORMAT = "YUV"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        SemSegDatasetMapper(cfg)


def test_real_driving_scenes():
    labels = sorted((ROOT / "camvid" / "labels" / "val").glob("*.png"))[:3]
    if not labels:
        pytest.skip(f"no CamVid in {ROOT}; set DENSESIAM_D2_TEST_DATA")
    MetadataCatalog.get("tiny_camvid").set(stuff_classes=[str(i) for i in range(11)], ignore_label=255)
    try:
        cfg = make_cfg()
        cfg.DATASETS.TRAIN = ("tiny_camvid",)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 11
        cfg.INPUT.MIN_SIZE_TRAIN = (180,)
        mapper = SemSegDatasetMapper(cfg)
        for label in labels:
            image = ROOT / "camvid" / "images" / "val" / f"{label.stem}.jpg"
            out = mapper({"file_name": str(image), "sem_seg_file_name": str(label)})
            assert out["image"].shape == (3, 180, 240) and out["sem_seg"].shape == (180, 240)
            # Nearest resampling by two: shares of the classes stay.
            before = np.bincount(np.asarray(Image.open(label)).ravel(), minlength=256) / (360 * 480)
            after = np.bincount(out["sem_seg"].numpy().ravel(), minlength=256) / (180 * 240)
            assert np.abs(before - after).max() < 0.01
    finally:
        MetadataCatalog.remove("tiny_camvid")
