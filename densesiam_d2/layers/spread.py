"""Measure the spread of embeddings, which shows a collapse; the loss does not show it, because it still falls."""

import math

import torch
from torch.nn import functional as F

__all__ = ["embedding_spread"]

_MAX_VECTORS = 4096  # vectors used for the effective rank
_NO_VARIANCE = 1e-8  # a smaller total variance of unit vectors may be only rounding error


@torch.no_grad()
def embedding_spread(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return five numbers about the directions of embeddings; each vector is first divided by its L2 norm.

    If directions are spread evenly over all images and points, ``std``, ``between`` and ``within`` are near 1 and
    ``mean_norm`` is near 0. The three are standard deviations of a sample (N - 1), averaged over channels, times
    sqrt(D).

    - ``std``: deviation over all images and points. It can stay high in a collapse, because zero padding alone makes
      border points different from others.
    - ``between``: deviation over images of their mean direction, normalised again; 0 when all images look alike. It
      uses the mean of unit vectors. Batch norm sets the batch mean of raw vectors to 0, so that the mean of an image
      would be noise, and normalising would make it look like spread.
    - ``within``: deviation over the points of an image, averaged over images; 0 when all its points look alike.
    - ``effective_rank``: exp of the entropy of the covariance's eigenvalues, divided by their sum; from 1 (all
      directions on one line, or equal) to D. It uses at most 4,096 vectors, evenly strided over images and points.
    - ``mean_norm``: norm of the mean of all vectors; 1 when they are equal.

    Args:
        z: (N, D, ...) embeddings at any number of points.

    Returns:
        0-dim float32 tensors by name, without undefined ones: ``between`` needs two images, ``within`` two points, and
        all but ``mean_norm`` two vectors. The values are NaN for embeddings that are not finite. On CUDA only the
        computation of the eigenvalues waits for the device.

    Source: SimSiam, Fig. 2 (arXiv 2011.10566) for ``std``; Roy and Vetterli, "The effective rank" (EUSIPCO 2007),
    applied to the covariance.
    """
    num_images, dim = z.shape[:2]
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float().reshape(num_images, dim, -1), dim=1)  # (N, D, P)
        num_points = z.shape[2]
        vectors = z.transpose(0, 1).flatten(1)  # (D, N * P)
        spread = {"mean_norm": vectors.mean(dim=1).norm()}
        if num_images * num_points > 1:
            spread["std"] = vectors.std(dim=1).mean() * dim**0.5
            spread["effective_rank"] = _effective_rank(vectors[:, :: _stride(num_images, num_points)])
        if num_images > 1:
            spread["between"] = F.normalize(z.mean(dim=2), dim=1).std(dim=0).mean() * dim**0.5
        if num_points > 1:
            spread["within"] = z.std(dim=2).mean() * dim**0.5
    return spread


def _stride(num_images: int, num_points: int) -> int:
    """Return a step through N * P vectors that takes every point equally often, not the same column in each image."""
    stride = math.ceil(num_images * num_points / _MAX_VECTORS)
    while math.gcd(stride, num_points) > 1:
        stride += 1
    return stride


def _effective_rank(vectors: torch.Tensor) -> torch.Tensor:
    """Return the effective rank of the covariance of ``vectors``, (D, n)."""
    x = vectors - vectors.mean(dim=1, keepdim=True)
    # Both products have the same eigenvalues except for zeros, so the smaller one is used.
    covariance = (x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x) / x.shape[1]
    total = covariance.trace()
    # eigvalsh refuses NaN, so NaN is replaced here; the division by the total makes the result NaN again.
    eigenvalues = torch.linalg.eigvalsh(covariance.nan_to_num()).clamp(min=0)
    return torch.special.entr(eigenvalues / total.clamp(min=_NO_VARIANCE)).sum().exp()
