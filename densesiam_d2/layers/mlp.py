"""Projectors and predictors: stacks of 1x1 convolutions, for points (N, C, S, S) and for vectors (N, C, M, 1)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PointConv2d", "ProjectorPredictor", "conv_mlp"]

_RELU = partial(nn.ReLU, inplace=True)


class PointConv2d(nn.Conv2d):
    """A 1x1 convolution that is a matrix product for maps of one position, which takes a quarter of the time on a CPU.

    (2,048 channels, batch 32, with the backward: a convolution stores its weights in another order first.)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def conv_mlp(
    in_dim: int,
    dims: Sequence[int],
    *,
    norm: Callable[[int], nn.Module],
    bias_last: bool,
    last_norm_affine: bool | None,
    bias_hidden: bool = False,
    activation: Callable[[], nn.Module] = _RELU,
) -> nn.Sequential:
    """Build hidden layers (convolution, norm, activation) and a last convolution.

    Args:
        in_dim: input channels.
        dims: output channels of each convolution; the last one has no activation.
        norm: function that makes a norm layer from a number of channels.
        bias_last: whether the last convolution has a bias.
        last_norm_affine: True or False adds a norm after the last convolution, with or without learned scale and shift;
            None adds nothing.
        bias_hidden: whether the convolutions of the hidden layers have a bias, as in BYOL.
        activation: function that makes the activation of the hidden layers.

    Returns:
        A module mapping (N, in_dim, h, w) to (N, dims[-1], h, w).
    """
    layers: list[nn.Module] = []
    for dim in dims[:-1]:
        layers += [PointConv2d(in_dim, dim, 1, bias=bias_hidden), norm(dim), activation()]
        in_dim = dim
    layers.append(PointConv2d(in_dim, dims[-1], 1, bias=bias_last))
    if last_norm_affine is not None:
        last = norm(dims[-1])
        if not last_norm_affine:
            last.requires_grad_(False)  # scale stays 1 and shift 0, as if it had none
        layers.append(last)
    return nn.Sequential(*layers)


class ProjectorPredictor(nn.Module):
    """The two heads of one siamese comparison: ``z = projector(f)``, ``p = predictor(z)``."""

    def __init__(self, in_dim: int, proj_dims: Sequence[int], pred_dim: int, norm: Callable[[int], nn.Module]):
        """Build projector and predictor.

        Args:
            in_dim: channels of f.
            proj_dims: widths of the projector; the last is D. The projector ends with a norm without affine parameters.
            pred_dim: hidden width of the predictor, D -> pred_dim -> D. The predictor ends with a convolution.
            norm: function that makes a norm layer from a number of channels.

        Source: SimSiam, Sec. 3 (arXiv 2011.10566).
        """
        super().__init__()
        dim = proj_dims[-1]
        self.projector = conv_mlp(in_dim, proj_dims, norm=norm, bias_last=False, last_norm_affine=False)
        self.predictor = conv_mlp(dim, [pred_dim, dim], norm=norm, bias_last=True, last_norm_affine=None)
