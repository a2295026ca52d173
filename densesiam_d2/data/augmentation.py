"""The geometric augmentations of self-supervised learning: each draws random amounts and returns a fixed transform.

Constructors check only what would otherwise give wrong views without an error; ``check_config`` checks all config keys.
"""

import math

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform
from PIL import Image
from torch.nn import functional as F

__all__ = [
    "INTERPOLATIONS",
    "AntialiasedResize",
    "AntialiasedResizeTransform",
    "CenterSquare",
    "CropResizeTransform",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "axis_map",
    "cut_patches",
]

INTERPOLATIONS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}  # values of INPUT.SSL.INTERPOLATION
_MODES = {interp: name for name, interp in INTERPOLATIONS.items()}


class AntialiasedResizeTransform(T.ResizeTransform):
    """detectron2's resize, faster for uint8 RGB images; their pixels equal Pillow's to within one grey level.

    Attributes:
        antialias: of uint8 RGB images; False interpolates between the nearest pixels only, as ``F.interpolate`` does.
    """

    antialias = True

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image; other types than uint8 RGB are resized by detectron2's own code.

        Args:
            img: (h, w) or (h, w, C).
            interp: a Pillow filter instead of the transform's own.

        Returns:
            (new_h, new_w) or (new_h, new_w, C).
        """
        interp = self.interp if interp is None else interp
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3 or interp not in _MODES:
            return super().apply_image(img, interp)
        assert img.shape[:2] == (self.h, self.w), (img.shape, self.h, self.w)
        # The batch axis is added before permute: only a 4-d tensor counts as channels-last, which has a fast kernel.
        x = torch.from_numpy(np.ascontiguousarray(img) if min(img.strides) < 0 else img)[None].permute(0, 3, 1, 2)
        size = (self.new_h, self.new_w)
        x = F.interpolate(x, size, mode=_MODES[interp], antialias=self.antialias)  # (1, 3, new_h, new_w)
        return x.permute(0, 2, 3, 1)[0].contiguous().numpy()


class CropResizeTransform(AntialiasedResizeTransform):
    """Cut out a rectangle and resize it: ``CropTransform`` and ``AntialiasedResizeTransform`` in one step."""

    def __init__(
        self,
        x0: int,
        y0: int,
        w: int,
        h: int,
        new_w: int,
        new_h: int,
        interp: int = Image.BILINEAR,
        antialias: bool = True,
    ):
        """Store the rectangle, and the size and filter of the result."""
        # detectron2's constructor takes 1 % of the time of two views to store the same values.
        self.x0, self.y0, self.w, self.h, self.new_w, self.new_h = x0, y0, w, h, new_w, new_h
        self.interp, self.antialias = interp, antialias

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        return super().apply_image(img[self.y0 : self.y0 + self.h, self.x0 : self.x0 + self.w], interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return (coords - (self.x0, self.y0)) * (self.new_w / self.w, self.new_h / self.h)

    def inverse(self) -> T.Transform:
        """Raise an error, because the pixels outside the crop are lost.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError


class RandomResizedCrop(T.Augmentation):
    """Crop a rectangle of random size, shape and place, and resize it to a square; coordinates are mapped as well.

    detectron2's ``RandomExtent`` is no substitute, because it shrinks images without antialiasing.

    Source: torchvision ``RandomResizedCrop`` for the draw; google-deepmind/deepmind-research, byol/utils/dataset.py for
    ``clip``.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        scale_of: str = "area",
        interpolation: str = "bilinear",
        antialias: bool = True,
        clip: bool = False,
    ):
        """Check and store the ranges.

        Args:
            size: side of the result, in pixels.
            scale: range of the crop's size, drawn uniformly.
            aspect: range of its width / height, drawn log-uniformly.
            scale_of: "area": ``scale`` is a fraction of the image's area; "side": of its short side; "pixels": the side
                of a square of the same area, in pixels of the image, at most the short side. A range may go beyond 1;
                what does not fit is treated as ``clip`` says.
            interpolation: "bilinear" or "bicubic".
            antialias: average over all pixels of the crop when shrinking.
            clip: what to do with a crop that is wider or higher than the image. False: draw again, up to ten times, and
                then take the largest central crop. True: cut it to the image's width or height (BYOL).

        Raises:
            ValueError: a range is not within its bounds or not ordered, or ``scale_of`` is unknown.
        """
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale {tuple(scale)} is not a range of positive numbers")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect {tuple(aspect)} is not a range of positive numbers")
        if scale_of not in ("area", "side", "pixels"):
            raise ValueError(f"scale_of {scale_of!r} is none of 'area', 'side', 'pixels'")
        self._init(locals())
        self._log_aspect = math.log(aspect[0]), math.log(aspect[1])

    def get_transform(self, image: np.ndarray) -> T.Transform:
        box = self._draw_box(*image.shape[:2])
        return CropResizeTransform(*box, self.size, self.size, INTERPOLATIONS[self.interpolation], self.antialias)

    def _draw_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        first, last = self._log_aspect
        for _ in range(10):
            scale, aspect, x, y = np.random.rand(4).tolist()
            scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
            if self.scale_of == "area":
                area = scale * height * width
            else:
                short = min(height, width)
                area = (scale * short if self.scale_of == "side" else min(scale, short)) ** 2
            aspect = math.exp(first + aspect * (last - first))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if self.clip:
                w, h = max(1, min(w, width)), max(1, min(h, height))
            if 0 < w <= width and 0 < h <= height:
                return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
        # No drawn crop fits, because the image is too long: take the largest central crop of an allowed shape.
        w = max(1, min(width, round(height * self.aspect[1])))
        h = max(1, min(height, round(width / self.aspect[0])))
        return (width - w) // 2, (height - h) // 2, w, h


class AntialiasedResize(T.Resize):
    """detectron2's resize of the whole image to a fixed size, by :class:`AntialiasedResizeTransform`."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return AntialiasedResizeTransform(*image.shape[:2], *self.shape, self.interp)


class CenterSquare(T.Augmentation):
    """Cut out the largest central square; nothing is random."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        h, w = image.shape[:2]
        side = min(h, w)
        return CropTransform((w - side) // 2, (h - side) // 2, side, side)


class ResizeCenterCrop(T.Augmentation):
    """Resize the short side to a length and cut out the central square of that side; nothing is random.

    Source: torchvision ``Resize`` and ``CenterCrop`` for the rounding.
    """

    def __init__(self, size: int):
        """Store the side of the square in pixels."""
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        h, w = image.shape[:2]
        new_h, new_w = (self.size, self.size * w // h) if h <= w else (self.size * h // w, self.size)
        y, x = round((new_h - self.size) / 2), round((new_w - self.size) / 2)
        resize = AntialiasedResizeTransform(h, w, new_h, new_w, Image.BILINEAR)
        return T.TransformList([resize, CropTransform(x, y, self.size, self.size)])


class _FastHFlipTransform(HFlipTransform):
    """A flip that copies the image: NumPy's flip only negates strides, which makes later operations 40 times slower."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.flip(img, 1)


class RandomHorizontalFlip(T.RandomFlip):
    """detectron2's horizontal ``RandomFlip`` with a faster copy."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        # np.random.rand takes a tenth of the time of Augmentation._rand_range.
        return _FastHFlipTransform(image.shape[1]) if np.random.rand() < self.prob else NoOpTransform()


_AXIS_MAPS = {
    NoOpTransform.apply_coords: lambda _: (1.0, 0.0, 1.0, 0.0),
    HFlipTransform.apply_coords: lambda flip: (-1.0, flip.width, 1.0, 0.0),
    CropTransform.apply_coords: lambda crop: (1.0, -crop.x0, 1.0, -crop.y0),
    T.ResizeTransform.apply_coords: lambda resize: (resize.new_w / resize.w, 0.0, resize.new_h / resize.h, 0.0),
    CropResizeTransform.apply_coords: lambda crop: (
        (x := crop.new_w / crop.w),
        -crop.x0 * x,
        (y := crop.new_h / crop.h),
        -crop.y0 * y,
    ),
}


def axis_map(transform: T.Transform) -> tuple[float, float, float, float] | None:
    """Return what a transform does to coordinates, as numbers: ``apply_coords`` takes 2 % of the time of two views.

    Returns:
        Scale and shift of x, then of y; None if ``apply_coords`` is none of those that are known here.
    """
    known = _AXIS_MAPS.get(type(transform).apply_coords)
    return known(transform) if known else None


def cut_patches(view: np.ndarray, grid: int, size: int) -> np.ndarray:
    """Cut a square from a random place in each cell of a grid over a view, and put the squares in random order.

    Args:
        view: (H, W, C); the grid covers its largest part whose sides are multiples of ``grid``.
        grid: number of cells per side.
        size: side of a patch in pixels, at most that of a cell.

    Returns:
        (grid * grid, size, size, C).

    Source: the jigsaw of shuuchen/DetCo.pytorch, detco/models.py.
    """
    height, width = view.shape[0] // grid, view.shape[1] // grid  # of a cell
    cells = np.random.permutation(grid * grid)
    y = cells // grid * height + np.random.randint(height - size + 1, size=len(cells))
    x = cells % grid * width + np.random.randint(width - size + 1, size=len(cells))
    return np.stack([view[i : i + size, j : j + size] for i, j in zip(y.tolist(), x.tolist(), strict=True)])
