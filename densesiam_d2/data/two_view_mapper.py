"""From one image file to two views that know where they came from."""

import logging

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T

from densesiam_d2.geometry import overlap_boxes, view_box

from .augmentation import (
    INTERPOLATIONS,
    AntialiasedResize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeCenterCrop,
)
from .color_augmentation import ColorJitter, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .image_io import read_image

__all__ = ["TwoViewDatasetMapper", "collate_views"]

MAX_DRAWS = 10  # of the second view, for INPUT.SSL.MIN_OVERLAP


class TwoViewDatasetMapper:
    """Make two augmented views of an image, for pretraining.

    The callable does the following:

    1. Read the image from "file_name"; annotations are not looked at
    2. Resize and crop it to the common square, if PRE_CROP is on
    3. Draw a geometric transform per view; draw the second again until the views overlap enough. The last of ten draws
       is taken as it is
    4. Make the views, and change their colours, each by its own draw
    5. Prepare the views and their boxes as tensors

    Colours change after the crop, at the size of the view. The released segmentation code changes them before it, on
    the 640-pixel image; the distributions differ in the contrast's mean and the blur's width.

    Source: SlotCon, ``data/transforms.py``, for step 3; DenseSiam, ``densesiam/datasets``, for PRE_CROP and "full".
    """

    @configurable
    def __init__(
        self,
        *,
        pre_crop: list[T.Augmentation],
        geometric: list[list[T.Augmentation]],
        photometric: list[list[T.Augmentation]],
        min_overlap: float = 0.0,
        redraw: bool = True,
    ):
        """Store the augmentations.

        Args:
            pre_crop: what happens to the image before any view is taken.
            geometric: for each of the two views, what leads from there to the view. Axis-aligned transforms only.
            photometric: for each view, what happens to its colours.
            min_overlap: least fraction of view 2 that lies within view 1.
            redraw: whether to draw view 2 again; False where that changes nothing.

        Raises:
            ValueError: there are not two views, or ``min_overlap`` is out of range.
        """
        if len(geometric) != 2 or len(photometric) != 2:
            raise ValueError(f"two views need two lists each, got {len(geometric)} and {len(photometric)}")
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"INPUT.SSL.MIN_OVERLAP {min_overlap} is not a fraction in [0, 1]")
        self.pre_crop = T.AugmentationList(pre_crop)
        self.geometric = [T.AugmentationList(augs) for augs in geometric]
        self.photometric = [T.AugmentationList(augs) for augs in photometric]
        self.min_overlap = min_overlap
        self.redraw = redraw
        logger = logging.getLogger(__name__)
        for i in range(2):
            logger.info("Augmentations of view %d: %s", i + 1, pre_crop + geometric[i] + photometric[i])

    @classmethod
    def from_config(cls, cfg):
        ssl = cfg.INPUT.SSL
        if cfg.INPUT.FORMAT != "RGB":
            raise ValueError(
                f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, but the views are RGB: set it to RGB, with PIXEL_MEAN and "
                "PIXEL_STD in that order"
            )
        for key in ("VIEWS", "BLUR_PROB", "SOLARIZE_PROB"):
            if len(ssl[key]) != 2:
                raise ValueError(f"INPUT.SSL.{key} {list(ssl[key])} needs one entry for each of the two views")
        return {
            "pre_crop": [ResizeCenterCrop(ssl.PRE_CROP)] if ssl.PRE_CROP > 0 else [],
            "geometric": [_build_geometric(ssl, kind) for kind in ssl.VIEWS],
            "photometric": [_build_photometric(ssl, i) for i in range(2)],
            "min_overlap": ssl.MIN_OVERLAP,
            "redraw": ssl.VIEWS[1] == "crop" and ssl.MIN_OVERLAP > 0,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the views of one image.

        Args:
            dataset_dict: detectron2's, of which only "file_name" is read.

        Returns:
            "views": (2, 3, S, S) uint8 RGB; "view_boxes": (2, 4) float32, see :mod:`densesiam_d2.geometry`;
            "file_name".

        Raises:
            ValueError: the file cannot be read.
        """
        cv2.setNumThreads(0)  # workers are processes already; more threads would only get in each other's way
        image = read_image(dataset_dict["file_name"])
        return {**self.make_views(image), "file_name": dataset_dict["file_name"]}

    def make_views(self, image: np.ndarray) -> dict:
        """Make the views of an (H, W, 3) uint8 RGB image; returns ``__call__``'s dict without the file name."""
        height, width = image.shape[:2]
        source = T.AugInput(image)
        pre_crop = self.pre_crop(source)

        first, box1 = self._draw_view(0, source.image, pre_crop, height, width)
        for _ in range(MAX_DRAWS):
            second, box2 = self._draw_view(1, source.image, pre_crop, height, width)
            if not self.redraw or self._overlap_enough(box1, box2):
                break

        for augmentations, view in zip(self.photometric, (first, second), strict=True):
            augmentations(view)
        views = torch.from_numpy(np.stack([first.image, second.image]))  # (2, S, S, 3)
        boxes = torch.from_numpy(np.stack([box1, box2])).float()
        # The channels move by their strides only; the memory stays channels-last, as fast convolutions like it.
        return {"views": views.permute(0, 3, 1, 2), "view_boxes": boxes}

    def _draw_view(self, index: int, image: np.ndarray, pre_crop: T.TransformList, height: int, width: int) -> tuple:
        view = T.AugInput(image)
        transforms = pre_crop + self.geometric[index](view)
        return view, view_box(transforms, height, width, *view.image.shape[:2])

    def _overlap_enough(self, box1: np.ndarray, box2: np.ndarray) -> bool:
        _, fraction = overlap_boxes(torch.from_numpy(box1)[None], torch.from_numpy(box2)[None])
        return bool(fraction >= self.min_overlap)


def collate_views(batch: list[dict]) -> dict:
    """Stack what the mapper returned for several images; runs in the worker, so that few large tensors travel.

    Args:
        batch: N dicts of :class:`TwoViewDatasetMapper`.

    Returns:
        "views": (N, 2, 3, S, S) uint8, "view_boxes": (N, 2, 4) float32, "file_name": list of N.
    """
    # Stacked in memory order: a stack of permuted tensors would move every byte of them.
    views = torch.stack([x["views"].permute(0, 2, 3, 1) for x in batch])  # (N, 2, S, S, 3)
    return {
        "views": views.permute(0, 1, 4, 2, 3),
        "view_boxes": torch.stack([x["view_boxes"] for x in batch]),
        "file_name": [x["file_name"] for x in batch],
    }


def _build_geometric(ssl, kind: str) -> list[T.Augmentation]:
    """Build the geometric augmentations of one view from INPUT.SSL."""
    if ssl.VIEW_SIZE <= 0:
        raise ValueError(f"INPUT.SSL.VIEW_SIZE {ssl.VIEW_SIZE} is not a size in pixels")
    if ssl.INTERPOLATION not in INTERPOLATIONS:
        raise ValueError(f"INPUT.SSL.INTERPOLATION {ssl.INTERPOLATION!r} is not one of {sorted(INTERPOLATIONS)}")
    if kind == "full":
        return [AntialiasedResize(ssl.VIEW_SIZE, INTERPOLATIONS[ssl.INTERPOLATION])]
    if kind != "crop":
        raise ValueError(f"INPUT.SSL.VIEWS has {kind!r}, which is neither 'crop' nor 'full'")
    return [
        RandomResizedCrop(ssl.VIEW_SIZE, ssl.CROP_SCALE, ssl.CROP_ASPECT, ssl.CROP_SCALE_OF, ssl.INTERPOLATION),
        RandomHorizontalFlip(ssl.FLIP_PROB),
    ]


def _build_photometric(ssl, index: int) -> list[T.Augmentation]:
    """Build the colour augmentations of view ``index`` from INPUT.SSL, in the order of SimSiam and BYOL."""
    return [
        ColorJitter(ssl.JITTER, ssl.JITTER_PROB, ssl.JITTER_INDEPENDENT),
        RandomGrayscale(ssl.GRAYSCALE_PROB),
        RandomGaussianBlur(ssl.BLUR_SIGMA, ssl.BLUR_PROB[index]),
        RandomSolarize(ssl.SOLARIZE_PROB[index]),
    ]
