"""Models, registered in detectron2's registries by import."""

from densesiam_d2.modeling.backbone import TorchvisionBackbone
from densesiam_d2.modeling.meta_arch import DenseSiam, SiameseMetaArch, SlidingSemanticSegmentor, trains_on_views
from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm
from densesiam_d2.modeling.sem_seg import FCNSemSegHead, PseudoLabelSemSegHead

__all__ = [
    "DenseSiam",
    "FCNSemSegHead",
    "PseudoLabelSemSegHead",
    "Res5ROIHeadsExtraNorm",
    "SiameseMetaArch",
    "SlidingSemanticSegmentor",
    "TorchvisionBackbone",
    "trains_on_views",
]
