"""Unsupervised segmentation by the prototypes of SlotCon (NeurIPS 2022, arXiv 2205.15288)."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.modeling.meta_arch.segmentor import CellSegmentor
from densesiam_d2.modeling.meta_arch.slotcon import SlotCon

__all__ = ["SlotConSegmentor"]


@META_ARCH_REGISTRY.register()
class SlotConSegmentor(CellSegmentor, SlotCon):
    """SlotCon, trained in the same way, that predicts a cluster for each pixel in evaluation.

    The logits of a pixel are the teacher's scores: the cosines of its projection with the prototypes. There may be
    more prototypes than classes; TEST.SEM_SEG_MATCHING "majority" then gives each cluster a class. The config keys are
    those of MODEL.SLOTCON.

    Source: viz_slots.py in CVMI-Lab/SlotCon for the scores. The code of the paper's segmentation is not released.
    """

    @classmethod
    def num_clusters(cls, cfg: CfgNode) -> int:
        return cfg.MODEL.SLOTCON.SLOTS

    @property
    def cell_stride(self) -> int:
        return self.backbone.output_shape()[self.in_feature].stride

    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x, self.teacher)[1]
