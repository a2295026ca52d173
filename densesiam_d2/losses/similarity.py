"""Similarity losses of two views: negative cosines and soft cross-entropy, each with a stop-gradient on the target.

Shape shorthand: N images, D embedding channels or K cluster logits, and then any axes of positions (S x S points, or
M regions x 1).
"""

import torch
from torch.nn import functional as F

from densesiam_d2.layers import blank_invalid, mean_over_images

__all__ = ["negative_cosine", "negative_cosine_of_pairs", "soft_cross_entropy"]


def negative_cosine(p: torch.Tensor, z: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean of -cos(p, stop-gradient z) over images and positions.

    Args:
        p: (N, D, ...) predictions.
        z: (N, D, ...) projections of the other view at the same points; no gradient flows into them.
        valid: (N,) bool, the images to use; None means all.

    Returns:
        Scalar in [-1, 1]; 0 when no image is valid.

    Source: SimSiam, Eq. 1 (arXiv 2011.10566), applied to points (DenseSiam, "PixSim").
    """
    p, z = blank_invalid(p, valid), blank_invalid(z, valid)
    cosine = F.cosine_similarity(p.float(), z.detach().float(), dim=1)  # (N, ...)
    return mean_over_images(-cosine.flatten(1).mean(dim=1), valid)


def negative_cosine_of_pairs(p: torch.Tensor, z: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return the mean of -cos(p_i, stop-gradient z_j) over each image's pairs (i, j), averaged over all images.

    An image without pairs counts as 0 in this average, with a gradient of 0.

    Args:
        p: (N, D, ...) predictions at P positions.
        z: (N, D, ...) projections of the other view at Q positions; no gradient flows into them.
        pairs: (N, P, Q) bool, the positions to compare.

    Returns:
        Scalar in [-1, 1].

    Source: PixPro, Eq. 4 (arXiv 2011.10043); contrast/models/PixPro.py in zdaxie/PixPro for images without pairs.
    """
    p = F.normalize(p.float().flatten(2), dim=1)  # (N, D, P)
    z = F.normalize(z.detach().float().flatten(2), dim=1)  # (N, D, Q)
    with torch.autocast(p.device.type, enabled=False):
        cosine = torch.einsum("ndi,ndj->nij", p, z)
    total = (cosine * pairs).sum(dim=(1, 2))
    return mean_over_images(-total / pairs.sum(dim=(1, 2)).clamp(min=1))


def soft_cross_entropy(
    p: torch.Tensor, z: torch.Tensor, valid: torch.Tensor | None = None, *, target_temperature: float = 1.0
) -> torch.Tensor:
    """Return the mean cross-entropy of softmax(p) against stop-gradient softmax(z) over images and positions.

    Args:
        p: (N, K, ...) predicted logits.
        z: (N, K, ...) target logits of the other view; no gradient flows into them.
        valid: (N,) bool, the images to use; None means all.
        target_temperature: divides z; below 1 the targets are sharper than the predictions.

    Returns:
        Scalar, at least the mean entropy of the targets; 0 when no image is valid.

    Source: ZwwWayne/DenseSiam, densesiam/models/architectures/densesiam.py (no temperature).
    """
    # A softmax over neighbours in memory takes a third of the time, and convolutions leave channels last. z needs no
    # blanks: the mean leaves out invalid images, and p's blanks stop their gradient.
    p, z = blank_invalid(p, valid).float().movedim(1, -1), z.detach().float().movedim(1, -1)
    if target_temperature != 1:
        z = z / target_temperature
    target = z.softmax(dim=-1)
    cross_entropy = -(target * p.log_softmax(dim=-1)).sum(dim=-1)  # (N, ...)
    return mean_over_images(cross_entropy.flatten(1).mean(dim=1), valid)
