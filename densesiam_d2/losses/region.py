"""RegionSim: pool a view into regions by soft masks, and compare the regions of two views.

Shape shorthand: N images, C feature channels, M regions, D embedding, S side of the grid. Regions are stored as
(N, C, M, 1) maps, so that heads of 1x1 convolutions work for both points and regions.
"""

import torch
from torch.nn import functional as F

from densesiam_d2.layers import blank_invalid, mean_over_images

__all__ = ["pool_regions", "region_infonce"]


def pool_regions(features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Sum features under soft masks.

    Args:
        features: (N, C, S, S).
        logits: (N, M, S, S); each point is shared among the M regions by a softmax.

    Returns:
        (N, C, M, 1) region embeddings: sums over the points, not means.

    Source: DenseSiam, "region embeddings" (features times dense predictions);
    densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam for softmax and sum.
    """
    # Channels last, as convolutions leave them, so that nothing is copied here or in the backward.
    masks = logits.float().movedim(1, -1).softmax(dim=-1).flatten(1, 2)  # (N, S*S, M)
    points = features.float().movedim(1, -1).flatten(1, 2)  # (N, S*S, C)
    with torch.autocast(features.device.type, enabled=False):  # else the sum is in half precision
        return (masks.transpose(1, 2) @ points).transpose(1, 2).unsqueeze(-1)  # (N, C, M, 1)


def region_infonce(
    p: torch.Tensor, z: torch.Tensor, temperature: float, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the InfoNCE loss between the regions of two views of the same image.

    The positive of a region is the region with the same channel index in the other view; the M - 1 other regions there
    are its negatives. Gradients flow into both arguments; detach ``z`` to stop them.

    Args:
        p: (N, D, M, 1) region predictions of one view.
        z: (N, D, M, 1) region projections of the other view.
        temperature: divides the cosine similarities.
        valid: (N,) bool, the images to use; None means all.

    Returns:
        Scalar >= 0; log M when all regions are equal.

    Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam.
    """
    p = F.normalize(blank_invalid(p, valid).float().squeeze(-1), dim=1)  # (N, D, M)
    z = F.normalize(blank_invalid(z, valid).float().squeeze(-1), dim=1)  # (N, D, M)
    with torch.autocast(p.device.type, enabled=False):  # half precision is too coarse for a cosine divided by 0.1
        logits = torch.einsum("ndi,ndj->nij", p, z) / temperature  # (N, M, M)
    loss = -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)  # (N, M)
    return mean_over_images(loss.mean(dim=1), valid)
