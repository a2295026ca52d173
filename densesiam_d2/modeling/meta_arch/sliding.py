"""Semantic segmentation with sliding-window inference.

Shape shorthand: K classes, H,W pixels of the network's input.
"""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.structures import ImageList
from torch.nn import functional as F

from densesiam_d2.layers import resize_logits

__all__ = ["SlidingSemanticSegmentor", "window_starts"]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of the windows along one axis, in pixels; the last window ends at the border.

    Args:
        length: pixels to cover, at least window.
        window: side of a window in pixels.
        stride: distance between neighbouring windows in pixels, 1 to window.
    """
    return [*range(0, length - window, stride), length - window]


@META_ARCH_REGISTRY.register()
class SlidingSemanticSegmentor(SemanticSegmentor):
    """``SemanticSegmentor`` whose inference averages the logits of overlapping windows of the training crop's size.

    Source: "slide" inference of WXinlong/mmsegmentation, mmseg/models/segmentors/encoder_decoder.py.
    """

    @configurable
    def __init__(self, *, slide_window: int, slide_stride: int, **kwargs):
        """Build the model.

        Args:
            slide_window: side of the square windows in pixels; 0 = whole images, as in ``SemanticSegmentor``.
            slide_stride: distance between windows in pixels.
            **kwargs: those of ``SemanticSegmentor``.
        """
        super().__init__(**kwargs)
        assert not slide_window or 1 <= slide_stride <= slide_window, (slide_window, slide_stride)
        self.slide_window = slide_window
        self.slide_stride = slide_stride

    @classmethod
    def from_config(cls, cfg):
        """Add ``TEST.SLIDE_WINDOW`` and ``TEST.SLIDE_STRIDE`` to what ``SemanticSegmentor`` reads."""
        return {
            **super().from_config(cfg),
            "slide_window": cfg.TEST.SLIDE_WINDOW,
            "slide_stride": cfg.TEST.SLIDE_STRIDE,
        }

    def forward(self, batched_inputs: list[dict]):
        """Train like ``SemanticSegmentor``; in inference return {"sem_seg": (K, height, width) logits} per image."""
        if self.training:
            return super().forward(batched_inputs)
        results = []
        for x in batched_inputs:
            image = (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std  # (3, H, W)
            logits = self._slide(image) if self.slide_window else self._logits(image)
            height, width = image.shape[-2:]
            results.append({"sem_seg": resize_logits(logits, x.get("height", height), x.get("width", width))})
        return results

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits (K, H, W) of a normalised image (3, H, W); padding and rounding of the head are cut off."""
        height, width = image.shape[-2:]
        padding = (self.backbone.size_divisibility, 0.0, self.backbone.padding_constraints)
        batch = ImageList.from_tensors([image], *padding).tensor  # (1, 3, H', W'), larger for FPNs
        return self.sem_seg_head(self.backbone(batch))[0][0, :, :height, :width]

    def _slide(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits (K, H, W) of a normalised image (3, H, W), averaged over all windows."""
        side = self.slide_window
        height, width = image.shape[-2:]
        # Zero is the mean colour, because the image is normalised. detectron2 pads small images with the same value.
        image = F.pad(image, (0, max(side - width, 0), 0, max(side - height, 0)))
        total = count = None
        for y in window_starts(image.shape[-2], side, self.slide_stride):
            for x in window_starts(image.shape[-1], side, self.slide_stride):
                window = np.s_[..., y : y + side, x : x + side]
                logits = self._logits(image[window])  # (K, side, side)
                if total is None:
                    shape = (1, len(logits), *image.shape[-2:])
                    total = logits.new_zeros(shape).contiguous(memory_format=torch.channels_last)[0]
                    count = logits.new_zeros(image.shape[-2:])
                total[window] += logits
                count[window] += 1
        return (total / count)[:, :height, :width]
