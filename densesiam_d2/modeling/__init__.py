"""Models, registered in detectron2's registries by import."""

from densesiam_d2.modeling.backbone import TorchvisionBackbone
from densesiam_d2.modeling.meta_arch import (
    BASELINES,
    METHODS,
    ClusteringSegmentor,
    SiameseMetaArch,
    SlidingSemanticSegmentor,
    builds,
    model_output,
    num_label_ids,
    trains_on_views,
)
from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm
from densesiam_d2.modeling.sem_seg import CentroidSemSegHead, FCNSemSegHead, IICHead, PseudoLabelSemSegHead

__all__ = [
    "BASELINES",
    "METHODS",
    "CentroidSemSegHead",
    "ClusteringSegmentor",
    "FCNSemSegHead",
    "IICHead",
    "PseudoLabelSemSegHead",
    "Res5ROIHeadsExtraNorm",
    "SiameseMetaArch",
    "SlidingSemanticSegmentor",
    "TorchvisionBackbone",
    "builds",
    "model_output",
    "num_label_ids",
    "trains_on_views",
]
