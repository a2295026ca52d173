"""Means over the images of all processes, and the identity on one process."""

import torch
from torch import distributed as dist

__all__ = ["world_size", "mean_over_images"]


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_images(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean of the valid images' values, such that averaging it over processes gives the global mean.

    DDP averages gradients over processes. A plain local mean would weigh an image more on a process that has few valid
    ones; so the local sum is divided by the mean number of valid images per process.

    Args:
        values: (N,) one value per image.
        valid: (N,) bool; all when None.

    Returns:
        Scalar; 0, with a gradient of 0, when no image of any process is valid.
    """
    if valid is None:
        return values.mean()
    weight = valid.to(values.dtype)
    count = weight.sum()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    # where, not a product: a NaN of an invalid image must not survive a multiplication by 0.
    return torch.where(valid, values, values.new_zeros(())).sum() / count.clamp(min=1 / world_size())
