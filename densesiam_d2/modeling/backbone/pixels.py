"""A backbone without weights, whose features are the colours and positions of pixels."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch.nn import functional as F

__all__ = ["PixelBackbone", "build_pixel_backbone", "rgb_to_lab"]

# sRGB to XYZ, divided by the white point D65 (IEC 61966-2-1).
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """Return the CIELAB colours of sRGB images (N, 3, H, W) in [0, 1]: L in [0, 100], a and b about [-110, 110].

    Source: CIE 15 for CIELAB, IEC 61966-2-1 for sRGB; the same formula as OpenCV's COLOR_RGB2Lab.
    """
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    matrix = rgb.new_tensor(_TO_XYZ) / rgb.new_tensor(_WHITE)[:, None]
    x, y, z = torch.einsum("ij,njhw->inhw", matrix, linear)
    x, y, z = (torch.where(t > 0.008856, t.clamp(min=1e-6) ** (1 / 3), 7.787 * t + 16 / 116) for t in (x, y, z))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


class PixelBackbone(Backbone):
    """CIELAB colours of cells of ``stride`` x ``stride`` pixels and, weighted, the position of each cell.

    The input must be RGB in [0, 1]: MODEL.PIXEL_MEAN 0 and PIXEL_STD 255.
    """

    def __init__(self, stride: int, position_weight: float):
        """Store the settings.

        Args:
            stride: side of a cell in pixels; its colour is the mean.
            position_weight: what the width and the height of an image count, in units of CIELAB; 0 leaves the position
                out.
        """
        super().__init__()
        self.stride, self.position_weight = stride, position_weight
        self._out_features = ["pixels"]
        self._out_feature_channels = {"pixels": 5 if position_weight else 3}
        self._out_feature_strides = {"pixels": stride}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {"pixels": (N, 3 or 5, H / stride, W / stride)} of images (N, 3, H, W)."""
        lab = F.avg_pool2d(rgb_to_lab(x), self.stride)
        if not self.position_weight:
            return {"pixels": lab}
        down, right = ((torch.arange(n, device=x.device) + 0.5) / n * self.position_weight for n in lab.shape[2:])
        place = torch.stack(torch.meshgrid(down, right, indexing="ij")).expand(len(x), -1, -1, -1)
        return {"pixels": torch.cat([lab, place], dim=1)}


@BACKBONE_REGISTRY.register()
def build_pixel_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PixelBackbone:
    """Return a :class:`PixelBackbone` with the settings of MODEL.KMEANS."""
    return PixelBackbone(cfg.MODEL.KMEANS.STRIDE, cfg.MODEL.KMEANS.POSITION_WEIGHT)
