"""The small network of IIC: six convolutions on colours and edges."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers.batch_colors import LUMA

__all__ = ["IICBackbone", "build_iic_backbone"]

SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))  # differences along x; transposed, along y


class IICBackbone(Backbone):
    """Six 3 x 3 convolutions, each with norm and ReLU, and a 2 x 2 maximum after the second.

    Input are the three colours and the two Sobel derivatives of the grey image. The last two convolutions have dilation
    2 but padding 1, so that each takes two cells off both axes: 128 pixels give 64, then 62, then 60 cells.

    Source: xu-ji/IIC, code/archs/segmentation/net10a.py and code/archs/cluster/vgg.py. Departure: grey is computed from
    the network's input (there: from rounded 8-bit values).
    """

    @configurable
    def __init__(self, *, norm: str, width: int = 64):
        """Build the network.

        Args:
            norm: kind of norm, as in detectron2.
            width: output channels of the first convolution; the six have 1, 2, 4, 4, 8 and 8 times as many.
        """
        super().__init__()
        layers, in_dim = [], 5
        for i, factor in enumerate((1, 2, 4, 4, 8, 8)):
            if i == 2:
                layers.append(nn.MaxPool2d(2))
            dim = width * factor
            conv = nn.Conv2d(in_dim, dim, 3, padding=1, dilation=2 if i >= 4 else 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            layers += [conv, get_norm(norm, dim) or nn.Identity(), nn.ReLU(inplace=True)]
            in_dim = dim
        self.layers = nn.Sequential(*layers)
        self.register_buffer("grey", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        sobel = torch.tensor(SOBEL)
        self.register_buffer("sobel", torch.stack([sobel, sobel.T])[:, None], persistent=False)  # (2, 1, 3, 3)
        self._out_features = ["trunk"]
        self._out_feature_channels = {"trunk": in_dim}
        self._out_feature_strides = {"trunk": 2}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None):
        """Read MODEL.RESNETS.NORM and MODEL.IIC.WIDTH.

        Raises:
            ValueError: MODEL.BACKBONE.FREEZE_AT is above 0.
        """
        if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}; this network has no stages: set 0"
            )
        return {"norm": cfg.MODEL.RESNETS.NORM, "width": cfg.MODEL.IIC.WIDTH}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to even sides, because the maximum would leave out an odd row."""
        return 2

    def with_edges(self, x: torch.Tensor) -> torch.Tensor:
        """Append the Sobel derivatives along x and y to images (N, 3, H, W); pixels outside count as 0."""
        grey = (x * self.grey).sum(dim=1, keepdim=True)
        return torch.cat([x, F.conv2d(grey, self.sobel, padding=1)], dim=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {"trunk": (N, C, H / 2 - 4, W / 2 - 4)} of images (N, 3, H, W)."""
        return {"trunk": self.layers(self.with_edges(x))}


@BACKBONE_REGISTRY.register()
def build_iic_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> IICBackbone:
    """Return the network with the norm of MODEL.RESNETS.NORM; its feature is called "trunk"."""
    return IICBackbone(cfg, input_shape)
