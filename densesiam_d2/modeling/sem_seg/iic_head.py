"""The two cluster heads of IIC."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from densesiam_d2.layers import with_idle
from densesiam_d2.modeling.sem_seg.decoder import TopDownDecoder, check_finest_stride, features_of

__all__ = ["IICHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class IICHead(nn.Module):
    """A decoder and two 1 x 1 convolutions to cluster logits: one for over-clustering, one for the evaluated clusters.

    Several features are summed by a :class:`TopDownDecoder`; a single one is used as it is.

    Source: xu-ji/IIC, code/archs/segmentation/net10a_twohead.py.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        overclusters: int,
        conv_dim: int,
        padding: int = 0,
    ):
        """Build the decoder and the heads.

        Args:
            input_shape: channels and stride of the backbone features to use.
            num_classes: K, clusters of the evaluated head.
            overclusters: clusters of the other head.
            conv_dim: C, channels of the decoder.
            padding: cells of value 0 around the map that the heads get; there all clusters are equally probable.
        """
        super().__init__()
        self.num_classes = num_classes
        self.common_stride = min(shape.stride for shape in input_shape.values())
        self.in_features = list(input_shape)
        single = len(input_shape) == 1
        self.decoder = None if single else TopDownDecoder(input_shape, conv_dim)
        dim = next(iter(input_shape.values())).channels if single else conv_dim
        self.overclustering = nn.Conv2d(dim, overclusters, 1, padding=padding, bias=False)
        self.clustering = nn.Conv2d(dim, num_classes, 1, padding=padding, bias=False)
        for head in (self.overclustering, self.clustering):
            nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="relu")

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read MODEL.SEM_SEG_HEAD and MODEL.IIC.

        Raises:
            ValueError: IN_FEATURES is empty or names a feature that the backbone does not give, or the finest of them
                is not at COMMON_STRIDE.
        """
        head, iic = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.IIC
        shapes = features_of(cfg, input_shape)
        check_finest_stride(shapes, head.COMMON_STRIDE)
        return {
            "input_shape": shapes,
            "num_classes": head.NUM_CLASSES,
            "overclusters": iic.OVERCLUSTERS,
            "conv_dim": head.CONVS_DIM,
            "padding": iic.HEAD_PADDING,
        }

    def decode(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the map (N, C, h, w) that both heads get."""
        x = features[self.in_features[0]] if self.decoder is None else self.decoder(features)
        others = [f for name, f in features.items() if name not in self.in_features]
        return with_idle(x, others) if self.training else x

    def layers(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits (N, K, h, w) of the evaluated clusters."""
        return self.clustering(self.decode(features))
