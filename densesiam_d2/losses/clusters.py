"""The loss of methods that alternate clustering and training. Shape shorthand: N images, K clusters, h,w cells."""

import torch
from torch.nn import functional as F

from densesiam_d2.layers import blank_invalid, gather

__all__ = ["cluster_cross_entropy"]


def cluster_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weighted mean of the cross-entropy: the sum of ``weights[label] * loss``, over the sum of the weights.

    The sum of weights is averaged over processes, so that the average of their losses is the weighted mean over the
    points of all of them.

    Args:
        logits: (N, K, h, w).
        labels: (N, h, w) int64.
        weights: (K,) weight of each label; PiCIE takes its frequency.
        valid: (N,) bool, the images to use; None means all.

    Returns:
        Scalar >= 0; 0 when no image is valid.

    Source: train_picie.py in janghyuncho/PiCIE, which calls PyTorch's cross-entropy with class weights.
    """
    logits = blank_invalid(logits, valid).float()
    weight = weights.float()[labels]  # (N, h, w)
    if valid is not None:
        weight = weight * valid[:, None, None]
    total = (F.cross_entropy(logits, labels, reduction="none") * weight).sum()
    divisor = gather(weight.sum()[None]).mean()
    return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))
