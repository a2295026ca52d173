from densesiam_d2.modeling.roi_heads.extra_norm import Res5ROIHeadsExtraNorm

__all__ = ["Res5ROIHeadsExtraNorm"]
