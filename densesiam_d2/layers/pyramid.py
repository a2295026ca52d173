"""A feature pyramid: fine maps of an encoder, each with the meaning of the coarser ones added."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["FeaturePyramid"]


class FeaturePyramid(nn.Module):
    """The top-down path of a feature pyramid network without norm; the coarsest map only feeds the finer ones.

    Layers have the names and the initialisation of detectron2's FPN: ``fpn_lateral5`` for a map of stride 2**5, and so
    on. That class is no substitute, because it hides the encoder's maps and needs an output for the coarsest one.

    Source: FPN, Sec. 3 (arXiv 1612.03144); Tete-Xiao/ReSim, moco/models.py.
    """

    def __init__(self, in_dims: Sequence[int], strides: Sequence[int], dim: int):
        """Build the layers.

        Args:
            in_dims: channels of the maps, from the finest to the coarsest.
            strides: pixels of the image per cell of each map; powers of 2.
            dim: channels of the results.
        """
        super().__init__()
        self.stages = [int(math.log2(stride)) for stride in strides]
        for stage, in_dim in zip(self.stages, in_dims, strict=True):
            self.add_module(f"fpn_lateral{stage}", _convolution(in_dim, dim, 1))
        for stage in self.stages[:-1]:
            self.add_module(f"fpn_output{stage}", _convolution(dim, dim, 3))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the results for all maps but the coarsest.

        Args:
            maps: (N, C, h, w) each, from the finest to the coarsest.

        Returns:
            (N, dim, h, w) each, in the same order.
        """
        laterals = [self.get_submodule(f"fpn_lateral{n}")(f) for n, f in zip(self.stages, maps, strict=True)]
        total, results = laterals[-1], []
        for stage, lateral in zip(self.stages[-2::-1], laterals[-2::-1], strict=True):
            total = lateral + F.interpolate(total, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.get_submodule(f"fpn_output{stage}")(total))
        return results


def _convolution(in_dim: int, out_dim: int, size: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_dim, out_dim, size, padding=size // 2)
    nn.init.kaiming_uniform_(layer.weight, a=1)  # what Caffe2 calls Xavier initialisation
    nn.init.zeros_(layer.bias)
    return layer
