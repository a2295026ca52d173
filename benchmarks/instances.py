"""Mapping an image with masks for Mask R-CNN, beside detectron2's own mapper."""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from densesiam_d2.data.detection_mapper import DetectionDatasetMapper
from densesiam_d2.engine import load_config

__all__ = ["run"]

CONFIG = "configs/own/mask_rcnn_R18_FPN.yaml"
CROPS = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.6, 0.6]]


def run(options: Options) -> Iterator[list[Row]]:
    """Measure images of 500 x 375 pixels with 5 and with 100 run-length encoded masks, with crops."""
    torch.set_num_threads(1)
    cfg = load_config(CONFIG, CROPS)
    cfg.INPUT.MASK_FORMAT = "bitmask"  # detectron2's mapper does not find out
    ours, theirs = DetectionDatasetMapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)
    files = jpeg_files(options, options.size(20, 2))
    for masks in (5, 100):
        records = [_record(name, masks) for name in files]
        variants = {
            "ours": lambda records=records: [ours(record) for record in records],
            "detectron2": lambda records=records: [theirs(record) for record in records],
        }
        times = measure(variants, options.repeats)
        name = f"an image with {masks} run-length encoded masks"
        yield [
            Row.of(name, "detectron2's mapper / ours", ratios(times, "detectron2", "ours")),
            Row.of(name, "ours, images/s of one core", [len(files) / t for t in times["ours"]]),
        ]


def _record(name: str, masks: int) -> dict:
    """Return the record of an image with discs of 20 pixels at random places."""
    image = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")({"file_name": name})["image"]
    height, width = image.shape[1:]
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    annotations = []
    for _ in range(masks):
        top, left = draw.integers(height - 20), draw.integers(width - 20)
        disc = (y - top - 9.5) ** 2 + (x - left - 9.5) ** 2 < 100
        annotations.append(
            {
                "bbox": [int(left), int(top), 20, 20],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": mask_util.encode(np.asfortranarray(disc, np.uint8)),
            }
        )
    return {"file_name": name, "height": height, "width": width, "annotations": annotations}
