"""From one image file to two views that know where they came from."""

import logging
from numbers import Number

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from torch.utils.data import default_collate

from densesiam_d2.geometry import view_box

from .augmentation import (
    INTERPOLATIONS,
    AntialiasedResize,
    CenterSquare,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeCenterCrop,
)
from .color_augmentation import ColorJitter, ColorSteps, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .image_io import WHITE_LEVEL, read_image

__all__ = ["TwoViewDatasetMapper", "collate_views"]

MAX_DRAWS = 10  # of the second view, for INPUT.SSL.MIN_OVERLAP


class TwoViewDatasetMapper:
    """Make two augmented views of an image, for pretraining.

    The callable does the following:

    1. Read the image from "file_name"; annotations are not looked at
    2. Cut out the common square, if PRE_CROP is on, after resizing, if COLOR_FIRST is
    3. Draw a geometric transform per view; draw the second again until the views overlap enough. The last of ten draws
       is taken as it is
    4. Make the views, and change their colours, each by its own draw; with COLOR_FIRST the colours change before step 3
    5. Prepare the views and their boxes as tensors

    The two orders of step 4 differ in the mean that contrast takes and in how wide a blur looks.

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
        color_first: bool = False,
        white_level: int = WHITE_LEVEL,
    ):
        """Store the augmentations.

        Args:
            pre_crop: what happens to the image before any view is taken.
            geometric: for each of the two views, what leads from there to the view. Axis-aligned transforms only.
            photometric: for each view, what happens to its colours.
            min_overlap: least fraction of view 2 that lies within view 1.
            redraw: whether to draw view 2 again; False where that changes nothing.
            color_first: change the colours of the whole (pre-cropped) image, before ``geometric``, as released.
            white_level: see :func:`densesiam_d2.data.image_io.read_image`.

        Raises:
            ValueError: there are not two views, or ``min_overlap`` is out of range.
        """
        if len(geometric) != 2 or len(photometric) != 2:
            raise ValueError(f"two views need two lists each, got {len(geometric)} and {len(photometric)}")
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"min_overlap {min_overlap} is not a fraction in [0, 1]")
        self.pre_crop = T.AugmentationList(pre_crop).augs
        self.geometric = [T.AugmentationList(augs).augs for augs in geometric]
        self.photometric = [T.AugmentationList(augs).augs for augs in photometric]
        self.min_overlap = min_overlap
        self.redraw = redraw
        self.color_first = color_first
        self.white_level = white_level
        logger = logging.getLogger(__name__)
        for i in range(2):
            logger.info("Augmentations of view %d: %s", i + 1, pre_crop + geometric[i] + photometric[i])

    @classmethod
    def from_config(cls, cfg):
        ssl = cfg.INPUT.SSL
        pre_crop = []
        if ssl.PRE_CROP > 0:  # only where colours change at that size does anything depend on it
            pre_crop = [ResizeCenterCrop(ssl.PRE_CROP) if ssl.COLOR_FIRST else CenterSquare()]
        return {
            "pre_crop": pre_crop,
            "geometric": [_build_geometric(ssl, kind) for kind in ssl.VIEWS],
            "photometric": [_build_photometric(ssl, i) for i in range(2)],
            "min_overlap": ssl.MIN_OVERLAP,
            "redraw": ssl.VIEWS[1] == "crop" and ssl.MIN_OVERLAP > 0,
            "color_first": ssl.COLOR_FIRST,
            "white_level": cfg.INPUT.WHITE_LEVEL,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the views of one image.

        Args:
            dataset_dict: detectron2's, of which only "file_name" is read; for an image in a tar file also "file_part".

        Returns:
            "views": (2, 3, S, S) uint8 RGB; "view_boxes": (2, 4) float32, see :mod:`densesiam_d2.geometry`;
            "file_name".

        Raises:
            ValueError: the file cannot be read.
        """
        cv2.setNumThreads(0)  # workers are processes already; more threads would only get in each other's way
        cv2.ipp.setUseIPP(False)  # whose hue takes half as long again, and which gives other pixels on other processors
        image = read_image(dataset_dict["file_name"], dataset_dict.get("file_part"), self.white_level)
        return {**self.make_views(image), "file_name": dataset_dict["file_name"]}

    def make_views(self, image: np.ndarray) -> dict:
        """Make the views of an (H, W, 3) uint8 RGB image; returns ``__call__``'s dict without the file name."""
        size = image.shape[:2]
        image, pre_crop = _augment(image, self.pre_crop)
        images = [image, image]
        if self.color_first:
            images = self._recolor(images)

        first, box1 = self._draw_view(0, images[0], pre_crop, size)
        for _ in range(MAX_DRAWS):
            second, box2 = self._draw_view(1, images[1], pre_crop, size)
            if not self.redraw or _overlap(box1, box2) >= self.min_overlap:
                break

        views = np.stack([first, second]) if self.color_first else self._recolor([first, second])  # (2, S, S, 3)
        boxes = torch.from_numpy(np.array([box1, box2], np.float32))
        # The channels move by their strides only; the memory stays channels-last, as fast convolutions like it.
        return {"views": torch.from_numpy(views).permute(0, 3, 1, 2), "view_boxes": boxes}

    def _draw_view(self, index: int, image: np.ndarray, pre_crop: list, size: tuple[int, int]) -> tuple:
        view, transforms = _augment(image, self.geometric[index])
        return view, view_box(T.TransformList(pre_crop + transforms), *size, *view.shape[:2])

    def _recolor(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the two images, each with colours changed by its own draw, as (2, H, W, 3)."""
        stacked = np.stack(images)
        for image, augmentations in zip(stacked, self.photometric, strict=True):
            for augmentation in augmentations:
                transform = _draw(augmentation, image)
                if isinstance(transform, ColorSteps):
                    transform.apply_in_place(image)
                else:
                    image[:] = transform.apply_image(image)
        return stacked


def _draw(augmentation: T.Augmentation, image: np.ndarray) -> T.Transform:
    if type(augmentation).__call__ is T.Augmentation.__call__:
        return augmentation.get_transform(image)
    return augmentation(T.AugInput(image))  # a list, or something of the user's


def _augment(image: np.ndarray, augmentations: list[T.Augmentation]) -> tuple[np.ndarray, list[T.Transform]]:
    """Draw and apply augmentations of an image alone; ``AugmentationList`` does as much in three times the time."""
    transforms = []
    for augmentation in augmentations:
        transforms.append(_draw(augmentation, image))
        image = transforms[-1].apply_image(image)
    return image, transforms


def _overlap(box1: list[float], box2: list[float]) -> float:
    """Return the share of view 2 that lies within view 1: ``geometry.overlap_boxes`` of two boxes, in plain numbers."""
    share = 1.0
    for i in (0, 1):
        (low1, high1), (low2, high2) = sorted(box1[i::2]), sorted(box2[i::2])
        share *= max(0.0, min(high1, high2) - max(low1, low2)) / (high2 - low2)
    return share


def collate_views(batch: list[dict]) -> dict:
    """Turn the samples of a batch into one dict; runs in the worker, so that few large tensors travel.

    Args:
        batch: N dicts with the same keys: :class:`TwoViewDatasetMapper`'s, or those of a mapper with further keys.

    Returns:
        For each key the N values: tensors, NumPy arrays and numbers stacked along a new first axis, everything else as
        a list. So "views": (N, 2, 3, S, S) uint8, "view_boxes": (N, 2, 4) float32, "file_name": list of N.

    Raises:
        ValueError: the dicts have different keys, or values cannot be stacked; the message names the key.
    """
    keys = batch[0].keys()
    if any(sample.keys() != keys for sample in batch):
        different = set().union(*(sample.keys() ^ keys for sample in batch))
        raise ValueError(f"the mapper did not return these keys for all images of a batch: {sorted(different)}")
    collated = {}
    for key in keys:
        try:
            collated[key] = _stack([sample[key] for sample in batch])
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the mapper's values under {key!r} cannot be stacked: {error}") from error
    return collated


def _stack(values: list) -> torch.Tensor | list:
    """Stack N values of one key if they are tensors, arrays or numbers; tensors keep their memory order."""
    if isinstance(values[0], np.ndarray):
        values = [torch.from_numpy(value) for value in values]
    if isinstance(values[0], torch.Tensor):
        return _stack_in_memory_order(values)
    return default_collate(values) if isinstance(values[0], Number | np.bool_) else values


def _stack_in_memory_order(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return ``torch.stack`` of N tensors, in the memory order of the first; in a worker in shared memory.

    Stacking channels-last images without the permutation would copy them byte by byte.
    """
    axes = range(tensors[0].ndim)
    outer_first = sorted(axes, key=tensors[0].stride, reverse=True)
    if outer_first == list(axes):
        return default_collate(tensors)
    stacked = default_collate([tensor.permute(outer_first) for tensor in tensors])
    return stacked.permute(0, *(1 + outer_first.index(axis) for axis in axes))


def _build_geometric(ssl, kind: str) -> list[T.Augmentation]:
    """Build the geometric augmentations of one view from INPUT.SSL."""
    if kind == "full":
        return [AntialiasedResize(ssl.VIEW_SIZE, INTERPOLATIONS[ssl.INTERPOLATION])]
    return [
        RandomResizedCrop(
            ssl.VIEW_SIZE,
            ssl.CROP_SCALE,
            ssl.CROP_ASPECT,
            ssl.CROP_SCALE_OF,
            ssl.INTERPOLATION,
            ssl.CROP_ANTIALIAS,
        ),
        RandomHorizontalFlip(ssl.FLIP_PROB),
    ]


def _build_photometric(ssl, index: int) -> list[T.Augmentation]:
    """Build the colour augmentations of view ``index`` from INPUT.SSL, in the order of SimSiam and BYOL."""
    return [
        ColorJitter(
            ssl.JITTER,
            ssl.JITTER_PROB,
            ssl.JITTER_INDEPENDENT,
            ssl.JITTER_RANDOM_ORDER,
            ssl.JITTER_BRIGHTNESS,
        ),
        RandomGrayscale(ssl.GRAYSCALE_PROB),
        RandomGaussianBlur(ssl.BLUR_SIGMA, ssl.BLUR_PROB[index]),
        RandomSolarize(ssl.SOLARIZE_PROB[index]),
    ]
