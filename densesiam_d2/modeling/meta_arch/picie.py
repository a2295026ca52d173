"""PiCIE: Unsupervised Semantic Segmentation using Invariance and Equivariance in Clustering (CVPR 2021)."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch.nn import functional as F

from densesiam_d2.geometry import overlap_boxes, overlap_grids, sample
from densesiam_d2.losses import cluster_cross_entropy
from densesiam_d2.modeling.consistency import count_winners
from densesiam_d2.modeling.meta_arch.clustering_segmentor import ClusteringSegmentor

__all__ = ["PiCIE"]


@META_ARCH_REGISTRY.register()
class PiCIE(ClusteringSegmentor):
    """Cluster the points of each view, then train each view to predict the clusters of both.

    Letters: x view, f normalised feature, y label. N images, C channels, K clusters, S points per side of the grid that
    covers what both views show. With INPUT.SSL.VIEWS "crop" and "full" these are the points of view 1.

    In evaluation the clusters are those of view 2, the whole image. PiCIE scores both views' centroids.

    Source: janghyuncho/PiCIE, train_picie.py and utils.py (arXiv 2103.17070). It has no auxiliary clustering ("+H" in
    its tables): that 27 and 128 clusters are weighted as DenseSiam weighs its classifiers is inferred. Departures:
    points are sampled exactly (there: the crop of view 2's features is rounded to whole cells); features are normalised
    before they are sampled and after that (there: only after; the mean cosine between both is above 0.999 on CamVid);
    both views are clustered in one pass over the images (there: one pass each).
    """

    @configurable
    def __init__(self, *, grid_size: int, **kwargs):
        """Store the size of the grid.

        Args:
            grid_size: S.
            kwargs: arguments of :class:`ClusteringSegmentor`; the head must be a ``CentroidSemSegHead``.
        """
        super().__init__(**kwargs)
        self.grid_size = grid_size

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "grid_size": cfg.MODEL.CLUSTERING.GRID_SIZE}

    def cluster_features(self, batched_inputs) -> list[torch.Tensor]:
        """Return the features (N, C, S, S) of view 1 and of view 2 at their common points."""
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        grids = overlap_grids(boxes1, boxes2, self.grid_size)[:2]
        return [F.normalize(sample(self.encode(x), grid), dim=1) for x, grid in zip((x1, x2), grids, strict=True)]

    def forward(self, batched_inputs):
        """Classify the points of two views in training; segment whole images otherwise.

        Args:
            batched_inputs: in training, the dict of ``collate_views`` ("views" uint8 (N, 2, 3, H, W), "view_boxes"
                (N, 2, 4), "position" (N,)); otherwise a list of dicts with "image".

        Returns:
            In training, "loss_within" and "loss_cross", and with an auxiliary clustering also "loss_within_aux" and
            "loss_cross_aux", all weighted; otherwise see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        features = f1, f2 = self.cluster_features(batched_inputs)
        labels = self.labels_of(batched_inputs, features)  # (N, 2, clusterings, S, S)
        boxes1, boxes2 = batched_inputs["view_boxes"].to(self.device).unbind(dim=1)
        overlap = overlap_boxes(boxes1, boxes2)[1]
        losses, head = {}, self.sem_seg_head
        for i, (clusters, weight) in enumerate(zip(head.clusterings, head.loss_weights, strict=True)):
            y1, y2 = labels[:, 0, i], labels[:, 1, i]

            def loss(f, y, view, clusters=clusters):
                return cluster_cross_entropy(clusters(f, view), y, clusters.frequency[view], overlap > 0)

            suffix = "_aux" if i else ""
            losses[f"loss_within{suffix}"] = weight * (loss(f1, y1, 0) + loss(f2, y2, 1)) / 4
            losses[f"loss_cross{suffix}"] = weight * (loss(f1, y2, 1) + loss(f2, y1, 0)) / 4
        if self.metrics_due():
            self.log_metrics(f1, overlap=overlap, winners=count_winners(labels[:, 1, 0]))
            logits = [head.clusterings[0](f.detach(), 1) for f in features]
            self.log_cluster_metrics(*logits, overlap > 0)
        return losses
