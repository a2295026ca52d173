from densesiam_d2.modeling.backbone.checkpointing import checkpoint_stages
from densesiam_d2.modeling.backbone.iic_backbone import IICBackbone
from densesiam_d2.modeling.backbone.pixels import PixelBackbone
from densesiam_d2.modeling.backbone.torchvision_backbone import TorchvisionBackbone, torchvision_cnns
from densesiam_d2.modeling.backbone.weights import mobilenet_v2_weights, torchvision_weights

__all__ = [
    "PixelBackbone",
    "IICBackbone",
    "TorchvisionBackbone",
    "checkpoint_stages",
    "mobilenet_v2_weights",
    "torchvision_cnns",
    "torchvision_weights",
]
