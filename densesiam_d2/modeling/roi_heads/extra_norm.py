"""The box head of C4 detectors with a norm after res5."""

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

__all__ = ["Res5ROIHeadsExtraNorm"]


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """``Res5ROIHeads`` with one norm of type MODEL.RESNETS.NORM after res5.

    With an unfrozen, self-supervised backbone the output of res5 can have any scale; the norm fixes it. The norm is
    part of the head, so pretrained weights do not fill it.

    Source: MoCo's detection transfer (facebookresearch/moco, ``detection/train_net.py``); our own implementation.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        res5, out_channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, out_channels) or nn.Identity())
        return res5, out_channels
