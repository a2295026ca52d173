"""Segmentation heads, registered in detectron2's SEM_SEG_HEADS_REGISTRY by import."""

from densesiam_d2.modeling.sem_seg.centroid_head import CentroidSemSegHead
from densesiam_d2.modeling.sem_seg.fcn_head import FCNSemSegHead
from densesiam_d2.modeling.sem_seg.iic_head import IICHead
from densesiam_d2.modeling.sem_seg.pseudo_label_head import PseudoLabelSemSegHead

__all__ = ["CentroidSemSegHead", "FCNSemSegHead", "IICHead", "PseudoLabelSemSegHead"]
