"""The supervised loss that the segmentation heads share."""

import torch
from torch.nn import functional as F

__all__ = ["masked_cross_entropy"]


def masked_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignore_value: int) -> torch.Tensor:
    """Return the mean cross-entropy over the labelled pixels, at label resolution.

    Args:
        logits: (N, K, H', W') with H' >= H and W' >= W, because strides round up; the part outside the labels is cut.
        targets: (N, H, W) class ids in [0, K), or ignore_value.
        ignore_value: label of the pixels that are left out.

    Returns:
        Scalar >= 0. A batch without any labelled pixel gives 0 with a gradient of 0; a plain mean would give NaN.
    """
    height, width = targets.shape[-2:]
    assert logits.shape[-2] >= height and logits.shape[-1] >= width, f"{logits.shape} against {targets.shape}"
    logits = logits[..., :height, :width].float()
    total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=ignore_value)
    return total / (targets != ignore_value).sum().clamp(min=1)
