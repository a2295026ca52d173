"""A loss on how often clusters are used. Shape shorthand: N images, K clusters."""

import torch

from densesiam_d2.layers import blank_invalid, gather, gather_with_gradient

__all__ = ["usage_loss"]


def usage_loss(logits: torch.Tensor, exponent: float, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return the divergence KL(usage || prior) of the clusters' shares from a prior, without naming large clusters.

    The usage is the mean softmax over the images and points of all processes. The prior has shares in proportion to
    ``rank ** -exponent``; the largest cluster of the batch gets the first, and so on. With exponent 0 the prior is
    uniform, and the loss is log K minus the entropy of the usage; with 1 it is Zipf's law.

    Args:
        logits: (N, K, ...).
        exponent: >= 0.
        valid: (N,) bool, the images to use; None means all.

    Returns:
        Scalar >= 0; 0 when no image is valid.

    Source: ours. Maximal entropy of the mean assignment: Krause et al. 2010, "Discriminative clustering by regularized
    information maximization".
    """
    shares = blank_invalid(logits, valid).float().softmax(dim=1).flatten(2).mean(dim=2)  # (N, K)
    counted = shares.new_ones(len(shares)) if valid is None else valid.to(shares)  # (N,)
    total = gather_with_gradient((shares * counted[:, None]).sum(dim=0, keepdim=True)).sum(dim=0)  # (K,)
    usage = total / gather(counted.sum(dim=0, keepdim=True)).sum().clamp(min=1)
    usage = usage.sort(descending=True).values
    prior = torch.arange(1, len(usage) + 1, device=usage.device, dtype=usage.dtype) ** -exponent
    return (usage * (usage.clamp(min=1e-8) * prior.sum() / prior).log()).sum()
