"""Ridge regression to one-hot labels from sums over cells, so that memory does not grow with the number of images.

Everything is in float64 on the device of the features. Shape shorthand: N cells, D channels, K classes.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

__all__ = ["LAMBDAS", "LinearClassifier", "Moments", "fit_ridge"]

LAMBDAS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)

# A channel counts as constant if its standard deviation, relative to its magnitude, is below the rounding error.
_CONSTANT = 1e-6


class LinearClassifier(NamedTuple):
    """Scores ``features @ weight + bias``.

    Attributes:
        weight: (D, K) float64.
        bias: (K,) float64.
    """

    weight: torch.Tensor
    bias: torch.Tensor


class Moments:
    """Sums over labelled cells, in float64, for mean, standard deviation and ridge regression."""

    def __init__(self, center: torch.Tensor, *, num_classes: int):
        """Start with no cell.

        Args:
            center: (D,) a point near the cells, which is subtracted from them before they are squared: the squares of
                a collapsed network's cells are otherwise too large for the digits that differ.
            num_classes: K.
        """
        self.center = center.double()
        zeros = partial(torch.zeros, dtype=torch.float64, device=center.device)
        self.gram = zeros(len(center), len(center))  # sum of x x^T, with x the difference from the center
        self.sums = zeros(len(center), num_classes)  # sum of x over the cells of each class
        self.counts = zeros(num_classes)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add cells.

        Args:
            features: (N, D).
            labels: (N,) int64 classes in [0, K).
        """
        features = features.double() - self.center
        one_hot = F.one_hot(labels, len(self.counts)).double()  # (N, K)
        self.gram += features.T @ features
        self.sums += features.T @ one_hot
        self.counts += one_hot.sum(dim=0)

    def __add__(self, other: "Moments") -> "Moments":
        total = Moments(self.center, num_classes=len(self.counts))
        total.gram, total.sums = self.gram + other.gram, self.sums + other.sums
        total.counts = self.counts + other.counts
        return total

    def mean_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how to standardise channels.

        Returns:
            (D,) mean, and (D,) one over the standard deviation, or 0 for constant channels, which are not used.

        Raises:
            ValueError: there is no cell.
        """
        count = self.counts.sum()
        if not count:
            raise ValueError("no cell of the training images has a label: in all cells most pixels are ignored")
        offset = self.sums.sum(dim=1) / count
        mean = self.center + offset
        std = (self.gram.diagonal() / count - offset**2).clamp(min=0).sqrt()
        varies = std > _CONSTANT * torch.hypot(mean, std)
        return mean, torch.where(varies, 1 / std, 0.0)


def fit_ridge(moments: Moments, penalty: float) -> LinearClassifier:
    """Fit a linear map from standardised features to one-hot labels by least squares.

    It minimises ``|Z W + b - Y|^2 + penalty |W|^2``, a sum over cells, with Z (N, D) the standardised features and Y
    (N, K) the one-hot labels; the intercept b is not penalised. As the columns of Z have mean 0, b is the mean of Y and
    W solves ``(Z^T Z + penalty I) W = Z^T Y``.

    Args:
        moments: sums over the training cells.
        penalty: lambda, above 0.

    Returns:
        The classifier; it takes features that are not standardised, because it contains mean and scale.

    Source: Hoerl and Kennard, "Ridge Regression", Technometrics 1970.
    """
    mean, scale = moments.mean_and_scale()
    count, offset = moments.counts.sum(), mean - moments.center
    gram = (moments.gram - count * torch.outer(offset, offset)) * torch.outer(scale, scale)  # Z^T Z
    target = (moments.sums - torch.outer(offset, moments.counts)) * scale[:, None]  # Z^T Y
    gram.diagonal().add_(penalty)
    weight = torch.cholesky_solve(target, torch.linalg.cholesky(gram)) * scale[:, None]
    return LinearClassifier(weight, moments.counts / count - mean @ weight)
