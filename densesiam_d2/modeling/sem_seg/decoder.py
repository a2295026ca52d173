"""The decoder and the weights that the label-free segmentation heads share, and the checks of the decoder's input.

Shape shorthand: N images, C decoder channels, h,w cells at the finest stride.
"""

import math

import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

__all__ = ["TopDownDecoder", "check_finest_stride", "clustering_weights", "features_of"]


class TopDownDecoder(nn.Module):
    """Sum backbone features into one map at the finest stride, like an FPN with one output, no norm and no smoothing.

    Source: densesiam/models/architectures/picie.py in ZwwWayne/DenseSiam ("FPNDecoder").
    """

    def __init__(self, input_shape: dict[str, ShapeSpec], conv_dim: int, *, normalize: bool = False):
        """Make one 1x1 convolution with bias per feature.

        Args:
            input_shape: channels and stride of each feature.
            conv_dim: C, channels of every lateral convolution and of the output.
            normalize: normalise each feature to length 1 over its channels.
        """
        super().__init__()
        self.normalize = normalize
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride, reverse=True)  # coarse first
        self.lateral = nn.ModuleDict({k: nn.Conv2d(input_shape[k].channels, conv_dim, 1) for k in self.in_features})

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (N, C, h, w), the size of the finest feature."""
        x = None
        for name in self.in_features:
            f = features[name]
            lateral = self.lateral[name](F.normalize(f.float(), dim=1) if self.normalize else f)
            if x is not None:
                lateral = lateral + F.interpolate(x, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            x = lateral
        return x


def features_of(cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Return the features that MODEL.SEM_SEG_HEAD.IN_FEATURES names.

    Raises:
        ValueError: it names a feature that the backbone does not give.
    """
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone only gives {sorted(input_shape)}"
        )
    return {name: input_shape[name] for name in names}


def check_finest_stride(input_shape: dict[str, ShapeSpec], common_stride: int) -> None:
    """Check the features of a decoder.

    Raises:
        ValueError: there are none, or the finest of them is not at MODEL.SEM_SEG_HEAD.COMMON_STRIDE.
    """
    strides = {name: shape.stride for name, shape in input_shape.items()}
    if not strides or min(strides.values()) != common_stride:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, but the strides of the MODEL.SEM_SEG_HEAD."
            f"IN_FEATURES that the backbone has are {strides}: set it to the smallest"
        )


def clustering_weights(main: int, aux: int) -> tuple[float, float]:
    """Return the weights of the losses of a main and an auxiliary clustering, which sum to 1.

    A cross-entropy over K clusters is about log K. Each weight is proportional to the log K of the other clustering, so
    that both terms count the same: 0.5955 and 0.4045 for 27 and 128 clusters.

    Args:
        main, aux: numbers of clusters; ``aux`` 0 = no auxiliary clustering, whose weight then is 0.
    """
    if not aux:
        return 1.0, 0.0
    total = math.log(main) + math.log(aux)
    return math.log(aux) / total, math.log(main) / total
