"""Instances as label maps of two classes, for models that predict label maps: background and foreground."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.masks import as_rle

__all__ = ["FOREGROUND_CLASSES", "foreground_of"]

FOREGROUND_CLASSES = ["background", "foreground"]


def foreground_of(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Return a label map of the pixels that belong to instances of any class.

    Args:
        annotations: in detectron2's format, with polygons or run lengths as "segmentation".
        height, width: of the image, in pixels.

    Returns:
        (H, W) uint8: 1 in any instance, ``IGNORE`` in crowds outside all instances, else 0.
    """
    labels = np.zeros((height, width), np.uint8)
    for crowd in (True, False):
        for annotation in annotations:
            if bool(annotation.get("iscrowd", 0)) == crowd and annotation.get("segmentation"):
                mask = mask_util.decode(as_rle(annotation["segmentation"], (height, width))).astype(bool)
                labels[mask] = IGNORE if crowd else 1
    return labels
