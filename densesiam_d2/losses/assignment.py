"""An assignment of points to clusters that uses all clusters alike. Shape shorthand: N images, K clusters."""

import torch

from densesiam_d2.layers import gather

__all__ = ["balanced_logits"]

NONE = -1e30  # the logarithm of the weight of a point that does not count; finite, so that no NaN comes of it


@torch.no_grad()
def balanced_logits(logits: torch.Tensor, valid: torch.Tensor | None = None, *, iterations: int = 3) -> torch.Tensor:
    """Return the logarithms of soft assignments in which all clusters have about the same share of all points.

    Each iteration of Sinkhorn and Knopp first scales the clusters to equal shares of the points of all processes, then
    the assignment of each point to the sum 1. Few iterations leave the shares somewhat unequal.

    Args:
        logits: (N, K, ...), divided by the temperature.
        valid: (N,) bool, the images that count; None means all.
        iterations: > 0.

    Returns:
        (N, K, ...) float32; its softmax over K, and its exponential, is the assignment. Without gradient.

    Source: SwAV, Sec. 3.1 (arXiv 2006.09882).
    """
    scores = logits.detach().float().movedim(1, -1)  # channels last, as convolutions leave them
    for _ in range(iterations):
        counted = scores if valid is None else torch.where(valid.view(-1, *[1] * (scores.dim() - 1)), scores, NONE)
        total = gather(counted.flatten(0, -2).logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)  # (K,)
        scores = (scores - total).log_softmax(dim=-1)
    return scores.movedim(-1, 1)
