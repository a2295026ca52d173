"""The base of methods that cluster features before each epoch, and train on the clusters as labels.

Shape shorthand: N images, V clustered views, C decoder channels, K clusters, h,w cells.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine.train_loop import HookBase

from densesiam_d2.modeling.clustering import ClusteringHook
from densesiam_d2.modeling.meta_arch.segmentor import LabelFreeSegmentor
from densesiam_d2.rules import POSITIVE

__all__ = ["ClusteringSegmentor"]


class ClusteringSegmentor(LabelFreeSegmentor):
    """A segmentor whose labels are nearest centroids, found before each epoch by :class:`ClusteringHook`.

    The subclass defines ``cluster_features`` and ``forward``.

    Attributes:
        labels: positions (N,) -> (N, V, clusterings, h, w) int64, set by the hook. While it is None, as in a single
            step without a trainer, the labels are the nearest of the present centroids.
    """

    head_name = "CentroidSemSegHead"
    RULES = {
        "MODEL.CLUSTERING.AUX_CLASSES": (lambda v: v == 0 or v > 1, "0 (none) or > 1"),
        "MODEL.CLUSTERING.FIRST_BATCHES": POSITIVE,
        "MODEL.CLUSTERING.ITERATIONS": POSITIVE,
        "MODEL.CLUSTERING.GRID_SIZE": POSITIVE,
    }

    @configurable
    def __init__(self, **kwargs):
        """Start without stored labels; the arguments are those of :class:`LabelFreeSegmentor`."""
        super().__init__(**kwargs)
        self.labels: Callable[[torch.Tensor], torch.Tensor] | None = None

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.CLUSTERING, which all methods of this kind share."""
        keys = cfg.MODEL.CLUSTERING = CfgNode()
        # Batches of SOLVER.IMS_PER_BATCH whose features plain k-means clusters together, held in the memory of the main
        # process; each later batch of the epoch is a mini-batch. At least as many as an epoch has: plain k-means of
        # all. PiCIE: 20 batches of 256 images (its re-implementation in ZwwWayne/DenseSiam: 40 of 128).
        keys.FIRST_BATCHES = 40
        # Iterations of plain k-means.
        keys.ITERATIONS = 20
        # Features to be clustered are extracted in training mode (True: batch norm uses the statistics of each batch,
        # and its running statistics move; janghyuncho/PiCIE) or in evaluation mode (False; ZwwWayne/DenseSiam).
        # Labelling is always in evaluation mode.
        keys.TRAIN_MODE = True
        # Clusters of the auxiliary clustering (over-clustering, "+H" in PiCIE's tables); 0 = none. PiCIE only.
        keys.AUX_CLASSES = 0
        # Points per side of the grid that covers what both views show. PiCIE only.
        keys.GRID_SIZE = 80

    def build_hooks(self, cfg: CfgNode) -> list[HookBase]:
        keys = cfg.MODEL.CLUSTERING
        return [
            ClusteringHook(
                self,
                Path(cfg.OUTPUT_DIR) / "clustering",
                total_batch=cfg.SOLVER.IMS_PER_BATCH,
                first=keys.FIRST_BATCHES,
                iterations=keys.ITERATIONS,
                train=keys.TRAIN_MODE,
            )
        ]

    def cluster_features(self, batched_inputs) -> list[torch.Tensor]:
        """Return the features (N, C, h, w) of each clustered view, normalised over C."""
        raise NotImplementedError

    def start_epoch(self, generator: torch.Generator, optimizer: torch.optim.Optimizer) -> None:
        """Do what the method does when the labels are new; nothing by default."""

    def labels_of(self, batched_inputs, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the labels (N, V, clusterings, h, w) of a batch whose features are given, one map per view."""
        if self.labels is not None:
            return self.labels(batched_inputs["position"]).to(self.device, non_blocking=True)
        clusterings = self.sem_seg_head.clusterings
        each = [torch.stack([c.label(f, view) for c in clusterings], dim=1) for view, f in enumerate(features)]
        return torch.stack(each, dim=1)
