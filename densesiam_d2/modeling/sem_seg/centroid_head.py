"""The segmentation head whose classifiers are centroids of k-means: a top-down decoder and sets of centroids.

Shape shorthand: N images, V views that are clustered, C decoder channels, K clusters, h,w cells at the finest stride.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import nearest, with_idle
from densesiam_d2.modeling.sem_seg.decoder import (
    TopDownDecoder,
    check_finest_stride,
    clustering_weights,
    features_of,
)

__all__ = ["CentroidSemSegHead", "Centroids"]


class Centroids(nn.Module):
    """The K centroids of each view, and how frequent each label is; buffers, set before each epoch.

    The first centroids are random directions, equal in all processes.
    """

    def __init__(self, num_views: int, num_clusters: int, dim: int):
        """Make the buffers ``weight`` (V, K, C) and ``frequency`` (V, K)."""
        super().__init__()
        weight = torch.randn(num_views, num_clusters, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", F.normalize(weight, dim=2))
        self.register_buffer("frequency", torch.full((num_views, num_clusters), 1 / num_clusters))

    def forward(self, f: torch.Tensor, view: int) -> torch.Tensor:
        """Return the logits (N, K, h, w) of features f (N, C, h, w): the dot products with a view's centroids."""
        return F.conv2d(f, self.weight[view, :, :, None, None])

    def label(self, f: torch.Tensor, view: int) -> torch.Tensor:
        """Return the index (N, h, w) of the nearest of a view's centroids for features f (N, C, h, w)."""
        points = f.detach().permute(0, 2, 3, 1)  # (N, h, w, C)
        return nearest(points.flatten(0, 2), self.weight[view]).view(points.shape[:3])


@SEM_SEG_HEADS_REGISTRY.register()
class CentroidSemSegHead(nn.Module):
    """Decode features, and classify them by centroids that do not learn; in evaluation by those of the last view.

    Source: the frozen classifiers of train_picie.py in janghyuncho/PiCIE; the decoder is that of DenseSiam's head.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dim: int,
        common_stride: int,
        aux_classes: int = 0,
        num_views: int = 2,
    ):
        """Build the decoder and the centroids.

        Args:
            input_shape: channels and stride of the backbone features to use.
            num_classes: K of the main clustering, whose clusters are the result.
            conv_dim: C.
            common_stride: stride of the finest feature.
            aux_classes: K of the auxiliary clustering; 0 = none.
            num_views: V.

        Raises:
            ValueError: IN_FEATURES is empty, or the finest of them is not at COMMON_STRIDE.
        """
        super().__init__()
        check_finest_stride(input_shape, common_stride)
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.decoder = TopDownDecoder(input_shape, conv_dim)
        sizes = [num_classes, aux_classes] if aux_classes else [num_classes]
        self.clusterings = nn.ModuleList(Centroids(num_views, size, conv_dim) for size in sizes)
        self.loss_weights = clustering_weights(num_classes, aux_classes)[: len(sizes)]

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read ``MODEL.SEM_SEG_HEAD`` and ``MODEL.CLUSTERING``; see the constructor for what it raises."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": features_of(cfg, input_shape),
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "aux_classes": cfg.MODEL.CLUSTERING.AUX_CLASSES,
        }

    def decode(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the decoded features (N, C, h, w), normalised over C."""
        x = F.normalize(self.decoder(features).float(), dim=1)
        others = [f for name, f in features.items() if name not in self.decoder.lateral]
        return with_idle(x, others) if self.training else x

    def layers(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits (N, K, h, w) of the main clusters of the last view."""
        return self.clusterings[0](self.decode(features), -1)
