"""Label-free segmentation is scored at the protocol's resolution (centre crops) and at that of the images."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from PIL import Image

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.datasets import register_sem_seg_folder
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine.trainer import Trainer
from densesiam_d2.modeling.meta_arch import LabelFreeSegmentor
from tests.data_trees import real_data

CLASSES = ["sky", "wall", "road"]
CLUSTER_OF = [2, 0, 1]  # the clusters have another order than the classes


class Bands(torch.nn.Module):
    """A head and backbone that read the class of a cell of 4 x 4 pixels from its red: 0, 100, 200."""

    num_classes, common_stride, size_divisibility, padding_constraints = 3, 4, 4, None

    def forward(self, x):
        return x

    def decode(self, features):
        return torch.nn.functional.avg_pool2d(features[:, :1], 4)

    def layers(self, features):
        centres = torch.tensor([0.0, 100, 200])[np.argsort(CLUSTER_OF)].view(1, 3, 1, 1)  # of the clusters
        return -((self.decode(features) - centres) ** 2)


@META_ARCH_REGISTRY.register()
class BandSegmentor(LabelFreeSegmentor):
    """A label-free segmentor without parameters that has learned the bands."""

    def __init__(self, cfg):
        keys = {"in_feature": "", "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
        predict = cfg.TEST.SEM_SEG_OUTPUT == "labels"
        super().__init__(backbone=Bands(), sem_seg_head=Bands(), predict_labels=predict, **keys)

    def forward(self, batched_inputs):
        return self.inference(batched_inputs)


@pytest.fixture
def bands(tmp_path, catalog):
    """Register two images of 96 x 144 pixels as a `masks:` set: vertical bands of 48 pixels, the left third ignored."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index, order in enumerate(([0, 1, 2], [2, 2, 1])):
        label = np.repeat(np.array(order, np.uint8), 48)[None].repeat(96, axis=0)
        Image.fromarray(np.stack([label * 100] * 3, axis=2)).save(tmp_path / "images" / f"{index}.png")
        label[:48, :16] = 255
        Image.fromarray(label).save(tmp_path / "labels" / f"{index}.png")
    (tmp_path / "labels" / "classes.txt").write_text("\n".join(CLASSES))
    name = f"masks:{tmp_path}/images,labels={tmp_path}/labels"
    register_path_datasets([name])
    return name


def scores(cfg, tmp_path):
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path / "run"), 0
    (tmp_path / "run").mkdir()
    Trainer.test(cfg, build_model(cfg).eval())
    return json.loads((tmp_path / "run" / "inference" / "sem_seg_evaluation.json").read_text())


def label_free_cfg(name, crop, output):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.FORMAT = "cpu", "BandSegmentor", "RGB"
    cfg.DATASETS.TEST = (name,)
    cfg.TEST.SEM_SEG_MATCHING, cfg.TEST.SEM_SEG_OUTPUT, cfg.TEST.CENTER_CROP_SIZE = "hungarian", output, crop
    return cfg


@pytest.mark.parametrize("output", ["logits", "labels"])
@pytest.mark.parametrize(
    ("crop", "min_size", "counts"),
    [
        # A crop of 96 is columns 24 to 120 of all 96 rows. Image 0 has there 24 columns of class 0, 48 of 1, 24 of 2;
        # image 1 has 72 of class 2, 24 of 1. No ignored pixel is inside.
        (96, 800, [24 * 96, (48 + 24) * 96, (24 + 72) * 96]),
        # At half the size a quarter of the pixels.
        (48, 800, [12 * 48, 36 * 48, 48 * 48]),
        # Whole images at their own size, whatever size the network sees: all but 48 * 16 pixels of each.
        (0, 96, [48 * 96 - 768, 96 * 96, 144 * 96 - 768]),
        (0, 192, [48 * 96 - 768, 96 * 96, 144 * 96 - 768]),
    ],
)
def test_bands_are_found_at_each_resolution(bands, tmp_path, output, crop, min_size, counts):
    cfg = label_free_cfg(bands, crop, output)
    cfg.INPUT.MIN_SIZE_TEST = min_size
    record = scores(cfg, tmp_path)
    assert record["sem_seg"]["mIoU"] == record["sem_seg"]["pACC"] == 100
    matrix = np.zeros((3, 3), int)
    matrix[range(3), CLUSTER_OF] = counts
    assert record["confusion"] == matrix.tolist()


def test_a_small_input_is_scored_at_the_size_of_the_images(bands, tmp_path):
    """At half the size a cell is 8 pixels wide in the image.

    Only half a cell beside each of the 3 edges of bands can be wrong: 12 of 288 columns, 4.2 %.
    """
    cfg = label_free_cfg(bands, 0, "logits")
    cfg.INPUT.MIN_SIZE_TEST = 48
    record = scores(cfg, tmp_path)
    assert np.sum(record["confusion"]) == 2 * (96 * 144 - 768)
    assert record["sem_seg"]["pACC"] > 95


@pytest.mark.parametrize(
    ("crop", "side"), [pytest.param(320, 320 * 320, id="crop"), pytest.param(0, 480 * 360, id="whole")]
)
def test_camvid_counts_all_labelled_pixels(catalog, tmp_path, crop, side):
    root = real_data("camvid")
    register_sem_seg_folder("camvid_all", root / "images" / "test", root / "labels" / "test", [*"abcdefghijk"])
    records = DatasetCatalog.get("camvid_all")[::60]
    DatasetCatalog.register("camvid_few", lambda: records)
    MetadataCatalog.get("camvid_few").set(stuff_classes=[*"abcdefghijk"], ignore_label=255, evaluator_type="sem_seg")
    cfg = label_free_cfg("camvid_few", crop, "labels")
    cfg.INPUT.MIN_SIZE_TEST = 320
    record = scores(cfg, tmp_path)
    labelled = 0
    for r in records:
        label = np.asarray(Image.open(r["sem_seg_file_name"]))
        if crop:  # 360 x 480 -> 320 x 426, columns 53 to 373, by Pillow's nearest pixels
            label = np.asarray(Image.fromarray(label).resize((426, 320), Image.NEAREST))[:, 53:373]
        assert label.size == side
        labelled += int((label != 255).sum())
    assert np.sum(record["confusion"]) == labelled and len(record["confusion"]) == 11
