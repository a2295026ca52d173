"""Pixel propagation: every position of a map becomes a mean of all similar positions."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PixelPropagation"]


class PixelPropagation(nn.Module):
    """Replace each position's vector by a sum over all positions of the image, weighted by their similarity to it.

    The weight of position j for position i is ``max(cos(x_i, x_j), 0) ** sharpness``.

    Source: PixPro, Eq. 3 and 4 (arXiv 2011.10043); contrast/models/PixPro.py in zdaxie/PixPro for the normalisation of
    the transformed vectors.
    """

    def __init__(self, transform: nn.Module, sharpness: float):
        """Store the transformation of the vectors that are summed, and the exponent of their weights.

        Args:
            transform: module mapping (N, D, h, w) to (N, D, h, w); its output is L2-normalised.
            sharpness: at least 1; below, the gradient at a cosine of 0 would be infinite.
        """
        super().__init__()
        self.transform = transform
        self.sharpness = sharpness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the propagated map, (N, D, h, w) float32, not normalised."""
        value = F.normalize(self.transform(x).float().flatten(2), dim=1)  # (N, D, h * w)
        unit = F.normalize(x.float().flatten(2), dim=1)  # (N, D, h * w)
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.einsum("ndi,ndj->nij", unit, unit).clamp(min=0) ** self.sharpness
            return torch.einsum("nij,ndj->ndi", weight, value).view(x.shape)
