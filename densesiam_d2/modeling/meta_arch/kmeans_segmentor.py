"""The baseline of label-free segmentation: k-means on the features of a backbone that does not learn, or on pixels."""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine.train_loop import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import MiniBatchKMeans, nearest, with_idle
from densesiam_d2.modeling.backbone import PixelBackbone
from densesiam_d2.modeling.clustering import random_points
from densesiam_d2.modeling.meta_arch.segmentor import CellSegmentor
from densesiam_d2.rules import NOT_NEGATIVE, POSITIVE, Rule

__all__ = ["KMeansSegmentor"]


@META_ARCH_REGISTRY.register()
class KMeansSegmentor(CellSegmentor):
    """K-means of the cells of all images, by the features of a frozen backbone.

    The clustering is done before the first iteration, on the second view of every image. An iteration changes nothing;
    its loss is the mean squared distance to the nearest centroid. So SOLVER.MAX_ITER 1 is enough.

    Letters: f feature. N images, C channels of all features together, K clusters, h,w cells at MODEL.KMEANS.STRIDE.
    """

    RULES: dict[str, Rule] = {
        "MODEL.KMEANS.STRIDE": POSITIVE,
        "MODEL.KMEANS.POSITION_WEIGHT": NOT_NEGATIVE,
        "MODEL.KMEANS.POINTS_PER_IMAGE": POSITIVE,
        "MODEL.KMEANS.ITERATIONS": POSITIVE,
    }

    @configurable
    def __init__(
        self,
        *,
        num_clusters: int,
        in_features: Sequence[str],
        stride: int,
        normalize: bool = True,
        **kwargs,
    ):
        """Freeze the backbone, and make room for the centroids.

        Args:
            num_clusters: K.
            in_features: names of the backbone's features to use.
            stride: pixels of the image per cell, to which all features are resized.
            normalize: normalise each feature to length 1 over its channels.
            kwargs: arguments of :class:`CellSegmentor`.
        """
        super().__init__(**kwargs)
        self.backbone.requires_grad_(False)
        self.in_features, self.cell_stride, self.normalize = list(in_features), stride, normalize
        strides = [self.backbone.output_shape()[name].stride for name in in_features]
        self._side_of = math.lcm(stride, *strides)  # sides of images are padded to multiples of this
        channels = sum(self.backbone.output_shape()[name].channels for name in in_features)
        # A parameter, because a training needs one; its gradient is 0.
        self.centroids = nn.Parameter(torch.zeros(num_clusters, channels))

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.KMEANS; SEM_SEG_HEAD.IN_FEATURES and NUM_CLASSES (clusters) keep their meaning."""
        keys = cfg.MODEL.KMEANS = CfgNode()
        # Pixels per cell, in which features are clustered.
        keys.STRIDE = 8
        # Normalise each feature of IN_FEATURES to length 1 before they are concatenated.
        keys.NORMALIZE = True
        # With MODEL.BACKBONE.NAME build_pixel_backbone (CIELAB colours): what the width and the height of an image
        # count beside the lightness, which is 0 to 100. 0 = colours without positions.
        keys.POSITION_WEIGHT = 0.0
        # Random cells of each image that are clustered; fewer if all images together would have more than a million.
        keys.POINTS_PER_IMAGE = 500
        # Iterations of k-means.
        keys.ITERATIONS = 50

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        problems, rate, model = [], cfg.SOLVER.WEIGHT_DECAY, cfg.MODEL
        if rate:
            problems.append(f"SOLVER.WEIGHT_DECAY is {rate}; it would change the centroids: set 0")
        if model.BACKBONE.NAME == "build_pixel_backbone":
            for key, value in (("PIXEL_MEAN", 0), ("PIXEL_STD", 255)):
                if list(model[key]) != [value] * 3:
                    problems.append(f"MODEL.{key} is {model[key]}; colours of build_pixel_backbone need {[value] * 3}")
        return problems

    @classmethod
    def from_config(cls, cfg):
        keys = cfg.MODEL.KMEANS
        return {
            **super().from_config(cfg),
            "num_clusters": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "in_features": cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES,
            "stride": keys.STRIDE,
            "normalize": keys.NORMALIZE,
        }

    def build_hooks(self, cfg: CfgNode) -> list[HookBase]:
        keys = cfg.MODEL.KMEANS
        return [FitHook(self, cfg.SOLVER.IMS_PER_BATCH, keys.POINTS_PER_IMAGE, keys.ITERATIONS)]

    def train(self, mode: bool = True) -> "KMeansSegmentor":
        """Set the mode, but keep the backbone in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def preprocess_image(self, image: torch.Tensor) -> torch.Tensor:
        """Do what :class:`CellSegmentor` does, and pad to whole cells, for backbones that need no padding."""
        x = super().preprocess_image(image)
        below, right = (-side % self._side_of for side in x.shape[2:])
        # A cell of pixels at the border has the colours of the image; a network gets the padding that it learned with.
        mode = "replicate" if isinstance(self.backbone, PixelBackbone) else "constant"
        return F.pad(x, (0, right, 0, below), mode=mode)

    @torch.no_grad()
    def cells(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (N, C, h, w) of normalised images (N, 3, H, W)."""
        size = [side // self.cell_stride for side in x.shape[2:]]
        features = self.backbone(x)
        maps = [features[name].float() for name in self.in_features]
        maps = [F.normalize(f, dim=1) for f in maps] if self.normalize else maps
        return torch.cat([F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in maps], dim=1)

    def forward(self, batched_inputs):
        """Measure the distance of a batch to the centroids in training; segment whole images otherwise.

        Args:
            batched_inputs: as in ``PiCIE``.

        Returns:
            In training, "loss_distance", without gradient; otherwise see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        points = self.cells(self.preprocess_views(batched_inputs)[1]).permute(0, 2, 3, 1).flatten(0, 2)
        with torch.no_grad():
            distance = (points - self.centroids[nearest(points, self.centroids)]).square().sum(dim=1).mean()
        return {"loss_distance": with_idle(distance, [self.centroids])}

    @torch.no_grad()
    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return half the negative squared distances to the centroids, (1, K, h, w), up to a constant of each cell."""
        offset = self.centroids.square().sum(dim=1) / 2
        # A convolution would round to TF32 on a GPU; the matrix product is that of the fit.
        return (self.cells(x).permute(0, 2, 3, 1) @ self.centroids.T - offset).permute(0, 3, 1, 2)


class FitHook(HookBase):
    """Set the centroids by k-means before the first iteration, on random cells of every image."""

    def __init__(self, model: KMeansSegmentor, total_batch: int, points_per_image: int, iterations: int):
        """Store the model without DDP, the images per batch of all processes, and the settings of k-means."""
        self._model, self._total_batch = model, total_batch
        self._points, self._iterations = points_per_image, iterations

    def before_step(self) -> None:
        """Cluster, if this is the first iteration."""
        if self.trainer.iter:
            return
        model, loader = self._model, self.trainer.data_loader
        points = random_points(self._features, loader, self._total_batch, self._points)
        options = {"iterations": self._iterations, "seed": loader.batches.seed % 2**31, "device": model.device}
        clustering = MiniBatchKMeans(len(model.centroids), **options)
        clustering.fit(points, model.centroids.shape[1])
        with torch.no_grad():
            model.centroids.copy_(clustering.centroids)

    def _features(self, batch: dict) -> torch.Tensor:
        """Return the cells of view 2."""
        return self._model.cells(self._model.preprocess_views(batch)[1])
