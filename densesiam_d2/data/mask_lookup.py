"""Transforms of the bitmasks of an image, worked out once for all of them."""

import numpy as np
from detectron2.data import transforms as T

__all__ = ["MaskLookup"]

# Their apply_segmentation takes each new pixel from one old one, or makes it 0.
_GEOMETRIC = {
    T.CropTransform,
    T.HFlipTransform,
    T.NoOpTransform,
    T.ResizeTransform,
    T.RotationTransform,
    T.VFlipTransform,
}


class MaskLookup(T.TransformList):
    """The transforms of an image, with the same results as a ``TransformList``, sooner if there are many masks.

    An image of cells may have hundreds of masks, and detectron2 crops and resizes each. Here the number of each pixel
    is cropped and resized instead, once, and the pixels of all masks are looked up by it. Where a transform is none of
    those that allow this, all are applied to each mask, as usual.
    """

    def __init__(self, transforms: T.TransformList):
        """Store the transforms."""
        super().__init__(transforms.transforms)
        self._lookup = all(
            type(t) in _GEOMETRIC or isinstance(t, (T.BlendTransform, T.ColorTransform)) for t in self.transforms
        )
        self._shape = self._numbers = None

    def _apply(self, x, meth: str):
        if meth != "apply_segmentation" or not self._lookup:
            return super()._apply(x, meth)
        if x.shape != self._shape:
            self._shape, self._numbers = x.shape, self._pixel_numbers(x.shape)
        pixels = np.zeros(x.size + 1, x.dtype)
        pixels[1:] = x.ravel(order="F")
        return pixels[self._numbers]

    def _pixel_numbers(self, shape: tuple[int, int]) -> np.ndarray:
        """Return for each new pixel the number of the old one; they begin with 1 and run down the columns. 0: none."""
        height, width = shape  # pycocotools decodes masks by columns
        numbers = np.arange(1, height * width + 1, dtype=np.uint32).reshape(width, height).T
        as_image = np.ascontiguousarray(numbers).view(np.uint8).reshape(height, width, 4)  # Pillow resizes four bytes
        moved = super()._apply(as_image, "apply_segmentation")
        return np.ascontiguousarray(moved).view(np.uint32)[..., 0].astype(np.intp)
