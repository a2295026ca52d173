"""How far embeddings spread: the numbers that show a collapse, where the loss only looks better."""

import math

import torch
from torch.nn import functional as F

__all__ = ["embedding_spread"]

_MAX_VECTORS = 4096  # of the effective rank
_NO_VARIANCE = 1e-8  # below it, the total variance of unit vectors may be all rounding


@torch.no_grad()
def embedding_spread(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return five numbers about the directions of embeddings, each vector divided by its L2 norm.

    Directions spread evenly over all images and points have ``std``, ``between`` and ``within`` near 1 and
    ``mean_norm`` near 0. The three deviations are those of a sample (N - 1), averaged over channels, times sqrt(D).

    - ``std``: deviation over all images and points. Zero padding alone can keep it up: it tells border points apart.
    - ``between``: deviation over images of their mean direction, normalised again; 0 when all images look alike. The
      mean is taken of unit vectors: batch norm sets the batch's mean of the raw ones to 0, so what is left in an image
      would be noise that normalising makes look like spread.
    - ``within``: deviation over the points of an image, averaged over images; 0 when all its points look alike.
    - ``effective_rank``: exp of the entropy of the covariance's eigenvalues, divided by their sum; from 1 (all
      directions on one line, or equal) to D. At most 4,096 vectors count, evenly strided over images and points.
    - ``mean_norm``: norm of the mean of all vectors; 1 when they are equal.

    Args:
        z: (N, D, ...) embeddings at any number of points.

    Returns:
        0-dim float32 tensors by name. What is not defined is left out: ``between`` for one image, ``within`` for one
        point, all but ``mean_norm`` for one vector. NaN for embeddings that are not finite. On CUDA the eigenvalues
        wait for the device, nothing else does.

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
    """Return a step through N * P vectors that meets every point equally often, not one column of each image."""
    stride = math.ceil(num_images * num_points / _MAX_VECTORS)
    while math.gcd(stride, num_points) > 1:
        stride += 1
    return stride


def _effective_rank(vectors: torch.Tensor) -> torch.Tensor:
    """Return the effective rank of the covariance of ``vectors``, (D, n)."""
    x = vectors - vectors.mean(dim=1, keepdim=True)
    # The smaller of the two products: both have the same eigenvalues other than 0.
    covariance = (x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x) / x.shape[1]
    total = covariance.trace()
    # The decomposition refuses NaN; divided by the total, the result is NaN all the same.
    eigenvalues = torch.linalg.eigvalsh(covariance.nan_to_num()).clamp(min=0)
    return torch.special.entr(eigenvalues / total.clamp(min=_NO_VARIANCE)).sum().exp()
