"""The segmentation loss with pseudo labels. Shape shorthand: N images, K clusters, h,w cells."""

import torch
from torch.nn import functional as F

from densesiam_d2.layers import blank_invalid, mean_over_images

__all__ = ["pseudo_label_loss"]


def pseudo_label_loss(
    logits: torch.Tensor,
    targets: torch.Tensor | None = None,
    *,
    rebalance: bool,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of logits against an argmax, weighted by how frequent each label is.

    The weight of a pixel is the share of its label among the valid pixels of this process's batch: the frequency, not
    its inverse. The mean is not divided by the sum of the weights. So large clusters get more weight, and with balanced
    clusters the loss is about 1/K of the unweighted loss.

    Args:
        logits: (N, K, h, w).
        targets: (N, K, h, w) whose argmax are the labels; None means the logits themselves.
        rebalance: True weights pixels by frequency; False gives every pixel weight 1.
        valid: (N,) bool, the images to use; None means all.

    Returns:
        Scalar >= 0; 0 when no image is valid.

    Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam ("rebalance").
    """
    logits = blank_invalid(logits, valid).float().movedim(1, -1)  # channels last, as convolutions leave them
    labels = (logits.detach() if targets is None else targets.movedim(1, -1)).argmax(dim=-1)  # (N, h, w)
    loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
    if rebalance:
        # labels[valid] and bincount would be shorter, but on a GPU both wait for the device.
        counted = torch.ones_like(loss) if valid is None else valid[:, None, None].expand_as(loss).float()
        counts = loss.new_zeros(logits.shape[-1]).scatter_add_(0, labels.flatten(), counted.flatten())
        frequency = counts / counts.sum().clamp(min=1)  # (K,)
        loss = loss * frequency[labels]
    return mean_over_images(loss.flatten(1).mean(dim=1), valid)
