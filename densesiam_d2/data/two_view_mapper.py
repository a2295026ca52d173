"""The mapper of pretraining: from one image file to two augmented views and the boxes that they show."""

import logging
from numbers import Number

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from torch.utils.data import default_collate

from densesiam_d2.geometry import view_box, view_box_of_axis_maps
from densesiam_d2.image_io import WHITE_LEVEL, read_image
from densesiam_d2.layers import COLOR_OPERATIONS

from .augmentation import (
    INTERPOLATIONS,
    AntialiasedResize,
    CenterSquare,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeCenterCrop,
    axis_map,
    cut_patches,
)
from .color_augmentation import ColorJitter, ColorSteps, RandomGaussianBlur, RandomGrayscale, RandomSolarize

__all__ = ["TwoViewDatasetMapper", "collate_views"]

MAX_DRAWS = 10  # of the second view, until it has INPUT.SSL.MIN_OVERLAP
MAX_STEPS = 7  # of colours: four of the jitter, grey, blur, solarisation
OPERATION_NUMBERS = {operation.__name__: number for number, operation in enumerate(COLOR_OPERATIONS)}


class TwoViewDatasetMapper:
    """Make two augmented views of an image, for pretraining.

    The callable does the following:

    1. Read the image from "file_name"; annotations are ignored.
    2. With PRE_CROP, cut out the central square, from which both views are taken; with COLOR_FIRST, after resizing.
       With SAME_FLIP, flip the image or not.
    3. Draw a geometric transform for each view. The second is drawn again until the views overlap enough, at most ten
       times; the tenth is taken in any case.
    4. Make the views and change the colours of each by its own random draw. With COLOR_FIRST this happens before step
       3: each view is taken from its own copy of the image, whose colours have been changed.
    5. Return the views and their boxes as tensors.

    With VIEWS ["crop", "same"] the crop belongs to step 2. After that view 1 is not changed any more. View 2 is flipped
    or not, and gets other colours.

    With COLOR_ON_DEVICE the changes of colours are only drawn, and the model applies them on its device.

    COLOR_FIRST matters because contrast then uses the mean of the whole image, and because the sigma of the blur is
    then in pixels of the image instead of pixels of the view.

    Source: SlotCon, ``data/transforms.py``, for step 3; DenseSiam, ``densesiam/datasets``, for PRE_CROP and "full".
    """

    @configurable
    def __init__(
        self,
        *,
        pre_crop: list[T.Augmentation],
        geometric: list[list[T.Augmentation] | T.AugmentationList],
        photometric: list[list[T.Augmentation] | T.AugmentationList],
        min_overlap: float = 0.0,
        redraw: bool = True,
        color_first: bool = False,
        color_on_device: bool = False,
        white_level: int = WHITE_LEVEL,
        patch_grid: int = 0,
        patch_size: int = 64,
    ):
        """Store the augmentations.

        Args:
            pre_crop: augmentations of the image before any view is taken.
            geometric: for each of the two views, the augmentations that make the view from the pre-cropped image. Only
                axis-aligned transforms.
            photometric: for each view, the augmentations of its colours.
            min_overlap: smallest fraction of view 2 that must lie within view 1.
            redraw: draw view 2 again until ``min_overlap`` is reached; False if view 2 is not random.
            color_first: change the colours of the whole (pre-cropped) image, before ``geometric``, as the released
                segmentation code does.
            color_on_device: return the drawn changes of colours as "color_steps" instead of applying them. The
                augmentations of ``photometric`` must then return :class:`ColorSteps`.
            white_level: see :func:`densesiam_d2.image_io.read_image`.
            patch_grid, patch_size: above 0, views are also cut into patches, see :func:`cut_patches`.

        Raises:
            ValueError: there are not two views, or ``min_overlap`` is out of range.
        """
        if len(geometric) != 2 or len(photometric) != 2:
            raise ValueError(
                f"geometric and photometric need one list for each of the two views, got {len(geometric)} and "
                f"{len(photometric)} lists"
            )
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"min_overlap {min_overlap} is not a fraction in [0, 1]")
        self.pre_crop = _listed(pre_crop)
        self.geometric = [_listed(augs) for augs in geometric]
        self.photometric = [_listed(augs) for augs in photometric]
        self.min_overlap = min_overlap
        self.redraw = redraw
        self.color_first = color_first
        self.color_on_device = color_on_device
        self.white_level = white_level
        self.patch_grid = patch_grid
        self.patch_size = patch_size
        logger = logging.getLogger(__name__)
        for i in range(2):
            logger.info("Augmentations of view %d: %s", i + 1, self.pre_crop + self.geometric[i] + self.photometric[i])

    @classmethod
    def from_config(cls, cfg):
        ssl = cfg.INPUT.SSL
        pre_crop = []
        if ssl.PRE_CROP > 0:  # resizing is needed with COLOR_FIRST only: colours then change at that size
            pre_crop = [ResizeCenterCrop(ssl.PRE_CROP) if ssl.COLOR_FIRST else CenterSquare()]
        if ssl.SAME_FLIP:
            pre_crop.append(RandomHorizontalFlip(ssl.FLIP_PROB))
        geometric = [_build_geometric(ssl, kind) for kind in ssl.VIEWS]
        photometric = [_build_photometric(ssl, i) for i in range(2)]
        if ssl.VIEWS[1] == "same":
            pre_crop.append(_build_crop(ssl))
            geometric[0], photometric[0] = [], []
        return {
            "pre_crop": pre_crop,
            "geometric": geometric,
            "photometric": photometric,
            "min_overlap": ssl.MIN_OVERLAP,
            "redraw": ssl.VIEWS[1] == "crop" and ssl.MIN_OVERLAP > 0,
            "color_first": ssl.COLOR_FIRST,
            "color_on_device": ssl.COLOR_ON_DEVICE,
            "white_level": cfg.INPUT.WHITE_LEVEL,
            "patch_grid": ssl.PATCH_GRID,
            "patch_size": ssl.PATCH_SIZE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the views of one image.

        Args:
            dataset_dict: of detectron2's form. Only "file_name" is read, and "file_part" of an image in a tar file.

        Returns:
            "views": (2, 3, S, S) uint8 RGB; "view_boxes": (2, 4) float32, see :mod:`densesiam_d2.geometry`;
            "file_name"; with ``color_on_device`` also "color_steps": (2, 7, 2) float64, see
            :func:`densesiam_d2.layers.apply_color_steps`; with ``patch_grid`` G also "patches":
            (2, G * G, 3, s, s) uint8 RGB, cut from the views.

        Raises:
            ValueError: the file cannot be read.
        """
        cv2.setNumThreads(0)  # loader workers run in parallel already; threads inside each would slow all of them down
        cv2.ipp.setUseIPP(False)  # IPP takes 1.5 times as long for the hue, and its pixels depend on the processor
        image = read_image(dataset_dict["file_name"], dataset_dict.get("file_part"), self.white_level)
        return {**self.make_views(image), "file_name": dataset_dict["file_name"]}

    def make_views(self, image: np.ndarray) -> dict:
        """Make the views of an (H, W, 3) uint8 RGB image; returns ``__call__``'s dict without the file name."""
        size = image.shape[:2]
        image, pre_crop = _augment(image, self.pre_crop)
        pre_crop = T.TransformList(pre_crop).transforms  # without lists in the list
        images = [image, image]
        if self.color_first:
            images = self._recolor(images)

        first, box1 = self._draw_view(0, images[0], pre_crop, size)
        for _ in range(MAX_DRAWS):
            second, box2 = self._draw_view(1, images[1], pre_crop, size)
            if not self.redraw or _overlap(box1, box2) >= self.min_overlap:
                break

        as_they_are = self.color_first or self.color_on_device
        views = np.stack([first, second]) if as_they_are else self._recolor([first, second])  # (2, S, S, 3)
        boxes = torch.from_numpy(np.array([box1, box2], np.float32))
        # permute changes strides only: the memory stays channels-last, the order for which convolutions are fast.
        sample = {"views": torch.from_numpy(views).permute(0, 3, 1, 2), "view_boxes": boxes}
        if self.color_on_device:
            sample["color_steps"] = torch.from_numpy(self._draw_colors([first, second]))
        if self.patch_grid:
            patches = np.stack([cut_patches(view, self.patch_grid, self.patch_size) for view in views])
            sample["patches"] = torch.from_numpy(patches).permute(0, 1, 4, 2, 3)
        return sample

    def _draw_view(self, index: int, image: np.ndarray, pre_crop: list, size: tuple[int, int]) -> tuple:
        view, transforms = _augment(image, self.geometric[index])
        maps = list(map(axis_map, pre_crop + transforms))
        if None in maps:  # a transform of somebody else
            return view, view_box(T.TransformList(pre_crop + transforms), *size, *view.shape[:2])
        return view, view_box_of_axis_maps(maps, *view.shape[:2])

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

    def _draw_colors(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the changes of the two images' colours that :meth:`_recolor` would draw, as (2, MAX_STEPS, 2)."""
        numbers = np.full((2, MAX_STEPS, 2), -1.0)
        for image, augmentations, rows in zip(images, self.photometric, numbers, strict=True):
            transforms = [_draw(augmentation, image) for augmentation in augmentations]
            if not all(isinstance(transform, ColorSteps) for transform in transforms):
                raise ValueError(f"INPUT.SSL.COLOR_ON_DEVICE needs transforms of the type ColorSteps, not {transforms}")
            steps = [step for transform in transforms for step in transform.steps]
            for i, (operation, *amount) in enumerate(steps):
                rows[i] = OPERATION_NUMBERS[operation.__name__], *(amount or [0.0])
        return numbers


def _listed(augs: list[T.Augmentation] | T.AugmentationList) -> list[T.Augmentation]:
    return augs.augs if isinstance(augs, T.AugmentationList) else T.AugmentationList(augs).augs


def _draw(augmentation: T.Augmentation, image: np.ndarray) -> T.Transform:
    if type(augmentation).__call__ is T.Augmentation.__call__:
        return augmentation.get_transform(image)
    return augmentation(T.AugInput(image))  # an AugmentationList, or a user's class with its own __call__


def _augment(image: np.ndarray, augmentations: list[T.Augmentation]) -> tuple[np.ndarray, list[T.Transform]]:
    """Draw and apply augmentations of an image without labels; ``AugmentationList`` takes three times as long."""
    transforms = []
    for augmentation in augmentations:
        transforms.append(_draw(augmentation, image))
        image = transforms[-1].apply_image(image)
    return image, transforms


def _overlap(box1: list[float], box2: list[float]) -> float:
    """Return the share of view 2 that lies within view 1, as ``geometry.overlap_boxes`` does for tensors."""
    share = 1.0
    for i in (0, 1):
        (low1, high1), (low2, high2) = sorted(box1[i::2]), sorted(box2[i::2])
        share *= max(0.0, min(high1, high2) - max(low1, low2)) / (high2 - low2)
    return share


def collate_views(batch: list[dict]) -> dict:
    """Turn the samples of a batch into one dict.

    It runs in the worker, so that a batch is sent to the main process as a few large tensors.

    Args:
        batch: N dicts with the same keys: those of :class:`TwoViewDatasetMapper`, or of a mapper with other keys.

    Returns:
        Under each key the N values: tensors, NumPy arrays and numbers stacked along a new first axis, everything else
        in a list. For :class:`TwoViewDatasetMapper`: "views": (N, 2, 3, S, S) uint8, "view_boxes": (N, 2, 4) float32,
        "file_name": list of N.

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
    """Return ``torch.stack`` of N tensors, in the memory order of the first.

    The axes are permuted to memory order for the copy, because copying channels-last images in another order is slow.
    In a worker, ``default_collate`` copies straight into shared memory.
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
    flip = [] if ssl.SAME_FLIP else [RandomHorizontalFlip(ssl.FLIP_PROB)]
    return flip if kind == "same" else [_build_crop(ssl), *flip]


def _build_crop(ssl) -> RandomResizedCrop:
    return RandomResizedCrop(
        ssl.VIEW_SIZE,
        ssl.CROP_SCALE,
        ssl.CROP_ASPECT,
        ssl.CROP_SCALE_OF,
        ssl.INTERPOLATION,
        antialias=ssl.CROP_ANTIALIAS,
        clip=ssl.CROP_CLIP,
    )


def _build_photometric(ssl, index: int) -> list[T.Augmentation]:
    """Build the colour augmentations of view ``index`` from INPUT.SSL, in the order of SimSiam and BYOL, or ReSim."""
    colors = [
        ColorJitter(
            ssl.JITTER,
            ssl.JITTER_PROB,
            independent=ssl.JITTER_INDEPENDENT,
            random_order=ssl.JITTER_RANDOM_ORDER,
            brightness=ssl.JITTER_BRIGHTNESS,
        ),
        RandomGrayscale(ssl.GRAYSCALE_PROB),
    ]
    blur = [RandomGaussianBlur(ssl.BLUR_SIGMA, ssl.BLUR_PROB[index])]
    solarize = [RandomSolarize(ssl.SOLARIZE_PROB[index])]
    return blur + colors + solarize if ssl.BLUR_FIRST else colors + blur + solarize
