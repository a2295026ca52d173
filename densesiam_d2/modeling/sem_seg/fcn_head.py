"""The FCN head of the supervised transfer protocol.

Shape shorthand: N images, C channels, K classes, h,w cells, H,W input pixels.
"""

from itertools import pairwise

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import with_idle
from densesiam_d2.modeling.sem_seg.loss import masked_cross_entropy

__all__ = ["FCNSemSegHead"]


def _checked_feature(head: CfgNode, input_shape: dict[str, ShapeSpec]) -> str:
    """Return the one feature to classify.

    Args:
        head: cfg.MODEL.SEM_SEG_HEAD.
        input_shape: channels and stride of the backbone's features.

    Raises:
        ValueError: IN_FEATURES is not one feature, a feature is not an output of the backbone, or COMMON_STRIDE is not
            that feature's stride.
    """
    if len(head.IN_FEATURES) != 1:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {head.IN_FEATURES}: FCNSemSegHead takes exactly one feature"
        )
    in_feature = head.IN_FEATURES[0]
    for key, name in {"IN_FEATURES": in_feature, "FCN.AUX_FEATURE": head.FCN.AUX_FEATURE}.items():
        if name and name not in input_shape:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.{key} names '{name}', but the backbone only gives {list(input_shape)}"
            )
    stride = input_shape[in_feature].stride
    if stride != head.COMMON_STRIDE:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE}, but the backbone gives '{in_feature}' at "
            f"stride {stride}: set it to that"
        )
    return in_feature


class FCNBranch(nn.Module):
    """3x3 convolutions, optional concatenation of the input, dropout and a 1x1 classifier."""

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        conv_dim: int,
        num_convs: int,
        norm: str,
        dilation: int = 1,
        concat_input: bool = False,
        dropout: float = 0.0,
    ):
        """Build the branch; see :class:`FCNSemSegHead` for the arguments."""
        super().__init__()
        dims = [in_dim] + [conv_dim] * num_convs
        self.convs = nn.Sequential(*[self._conv(a, b, norm, dilation) for a, b in pairwise(dims)])
        self.concat_conv = self._conv(in_dim + dims[-1], conv_dim, norm, 1) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = Conv2d(conv_dim if concat_input else dims[-1], num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @staticmethod
    def _conv(in_dim: int, out_dim: int, norm: str, dilation: int) -> Conv2d:
        conv = Conv2d(
            in_dim,
            out_dim,
            kernel_size=3,
            padding=dilation,
            dilation=dilation,
            bias=not norm,
            norm=get_norm(norm, out_dim),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(conv)
        return conv

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K, h, w) of a feature (N, C, h, w)."""
        x = self.convs(feature)
        if self.concat_conv is not None:
            x = self.concat_conv(torch.cat([feature, x], dim=1))
        return self.predictor(self.dropout(x))


@SEM_SEG_HEADS_REGISTRY.register()
class FCNSemSegHead(nn.Module):
    """Fully convolutional head on one feature; in training it has an auxiliary branch on an earlier feature.

    Source: FCN R50-d8 of WXinlong/mmsegmentation, configs/densecl and configs/_base_/models/fcn_r50-d8.py.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        conv_dim: int,
        norm: str,
        num_convs: int = 2,
        dilation: int = 1,
        concat_input: bool = True,
        dropout: float = 0.1,
        aux_feature: str = "",
        aux_conv_dim: int = 256,
        align_corners: bool = True,
        loss_weight: float = 1.0,
        aux_loss_weight: float = 0.4,
        ignore_value: int = 255,
    ):
        """Build both branches.

        Args:
            input_shape: channels and stride of the backbone's features.
            in_feature: name of the feature that is classified.
            num_classes: K.
            conv_dim: channels of the 3x3 convolutions.
            norm: name of the norm after each convolution, "" = none.
            num_convs: 3x3 convolutions before the optional concatenation.
            dilation: dilation of these convolutions.
            concat_input: concatenate the feature with the output of these convolutions, and apply one more 3x3
                convolution.
            dropout: share of channels dropped before each classifier.
            aux_feature: feature of the auxiliary branch (one 3x3 convolution), "" = none.
            aux_conv_dim: channels of that convolution.
            align_corners: True: cell i lies at pixel i * stride, as after convolutions with stride; False: each cell is
                a square with a side of stride pixels.
            loss_weight: weight of ``loss_sem_seg``.
            aux_loss_weight: weight of ``loss_sem_seg_aux``.
            ignore_value: label of the pixels that the loss leaves out.
        """
        super().__init__()
        self.in_feature, self.aux_feature = in_feature, aux_feature
        self.strides = {name: input_shape[name].stride for name in (in_feature, aux_feature) if name}
        self.align_corners = align_corners
        self.loss_weight, self.aux_loss_weight = loss_weight, aux_loss_weight
        self.ignore_value = ignore_value
        self.main = FCNBranch(
            input_shape[in_feature].channels,
            num_classes,
            conv_dim=conv_dim,
            num_convs=num_convs,
            norm=norm,
            dilation=dilation,
            concat_input=concat_input,
            dropout=dropout,
        )
        self.aux = None
        if aux_feature:
            channels = input_shape[aux_feature].channels
            self.aux = FCNBranch(channels, num_classes, conv_dim=aux_conv_dim, num_convs=1, norm=norm, dropout=dropout)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read ``MODEL.SEM_SEG_HEAD``; raise ValueError if it does not fit the backbone."""
        head, fcn = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.SEM_SEG_HEAD.FCN
        in_feature = _checked_feature(head, input_shape)
        return {
            "input_shape": input_shape,
            "in_feature": in_feature,
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "num_convs": fcn.NUM_CONVS,
            "dilation": fcn.DILATION,
            "concat_input": fcn.CONCAT_INPUT,
            "dropout": fcn.DROPOUT,
            "aux_feature": fcn.AUX_FEATURE,
            "aux_conv_dim": fcn.AUX_CONVS_DIM,
            "align_corners": fcn.ALIGN_CORNERS,
            "loss_weight": head.LOSS_WEIGHT,
            "aux_loss_weight": fcn.AUX_LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Return the losses in training and the logits in inference, as detectron2 expects of a segmentation head.

        Args:
            features: name -> (N, C_i, h_i, w_i).
            targets: (N, H, W) labels, in training.

        Returns:
            In training, (None, weighted ``loss_sem_seg`` and ``loss_sem_seg_aux``). In inference,
            (logits (N, K, h * stride, w * stride), {}).
        """
        logits = self.main(features[self.in_feature])
        if not self.training:
            logits = logits.contiguous(memory_format=torch.channels_last)  # resize and argmax are faster on CPU
            return self._upsample(logits, self.in_feature), {}
        if targets is None:
            raise ValueError("FCNSemSegHead needs labels to train: the dataset's images have no 'sem_seg_file_name'")
        loss = self.loss_weight * self._loss(logits, self.in_feature, targets)
        others = [f for name, f in features.items() if name not in self.strides]
        losses = {"loss_sem_seg": with_idle(loss, others)}
        if self.aux is not None:
            aux_loss = self._loss(self.aux(features[self.aux_feature]), self.aux_feature, targets)
            losses["loss_sem_seg_aux"] = self.aux_loss_weight * aux_loss
        return None, losses

    def _loss(self, logits: torch.Tensor, feature: str, targets: torch.Tensor) -> torch.Tensor:
        return masked_cross_entropy(self._upsample(logits.float(), feature), targets, self.ignore_value)

    def _upsample(self, logits: torch.Tensor, feature: str) -> torch.Tensor:
        """Return logits (N, K, h, w) resized to (N, K, h * stride, w * stride)."""
        stride = self.strides[feature]
        if not self.align_corners:
            return F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
        # The outermost cells lie (w - 1) * stride pixels apart: a crop of 769 = 96 * 8 + 1 pixels is covered exactly.
        h, w = logits.shape[-2:]
        size = ((h - 1) * stride + 1, (w - 1) * stride + 1)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
        return F.pad(logits, (0, stride - 1, 0, stride - 1), mode="replicate")
