"""K-means: faiss for a first set of points, then one update per mini-batch. Every process ends with the same centroids.

Shape shorthand: n points, C channels, K clusters.
"""

import numpy as np
import torch
from torch import distributed as dist
from torch.nn import functional as F

from densesiam_d2.layers.distributed import world_size

__all__ = ["MiniBatchKMeans", "TooFewPointsError", "kmeans", "nearest"]

CHUNK = 1 << 18  # points that are compared with the centroids at once


class TooFewPointsError(ValueError):
    """There are fewer points than clusters; the message says what gives more."""


def kmeans(points: np.ndarray, num_clusters: int, iterations: int, seed: int) -> np.ndarray:
    """Return the (K, C) centroids after some iterations of plain k-means, which starts from K random points.

    Args:
        points: (n, C) float32.
        num_clusters: K.
        iterations: of assignment and averaging. A cluster that loses all its points splits a large one.
        seed: of the choice of the first centroids.

    Raises:
        TooFewPointsError: there are fewer points than clusters.
    """
    import faiss  # here, because few runs need it

    if len(points) < num_clusters:
        raise TooFewPointsError(
            f"k-means into {num_clusters} clusters needs as many points, but the training images give {len(points)}: "
            "take more images or larger views (INPUT.SSL.VIEW_SIZE), or fewer clusters (MODEL.SEM_SEG_HEAD.NUM_CLASSES "
            "or PSEUDO_LABEL.MERGE_FROM below it)"
        )
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": 10_000_000}  # faiss drops points above
    clustering = faiss.Kmeans(points.shape[1], num_clusters, niter=iterations, seed=seed, **limits)
    clustering.train(np.ascontiguousarray(points, dtype=np.float32))
    return clustering.centroids


def nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return for each point (n, C) the index (n,) int64 of the nearest centroid of (K, C), by Euclidean distance."""
    offset = centroids.square().sum(dim=1)
    return torch.cat([(2 * part @ centroids.T - offset).argmax(dim=1) for part in points.split(CHUNK)])


class MiniBatchKMeans:
    """K-means of more points than fit into memory.

    :meth:`fit` runs plain k-means on the first points. :meth:`update` then moves each centroid towards the mean of its
    points in a mini-batch, by the share that these have among all its points so far. If all points go to ``fit``, this
    is plain k-means.

    Attributes:
        centroids: (K, C).
        counts: (K,) float64, points of each cluster so far.

    Source: janghyuncho/PiCIE, utils.py; Sculley 2010, "Web-scale k-means clustering".
    """

    def __init__(self, num_clusters: int, *, iterations: int, seed: int, device: torch.device):
        """Store the settings.

        Args:
            num_clusters: K.
            iterations, seed: of plain k-means, see :func:`kmeans`.
            device: where the centroids are.
        """
        self.num_clusters, self.iterations, self.seed, self.device = num_clusters, iterations, seed, device
        self.centroids, self.counts = torch.empty(0), torch.empty(0)

    def fit(self, points: torch.Tensor, channels: int) -> None:
        """Run plain k-means on the points of the main process, and send the centroids to the other processes.

        Args:
            points: (n, C) on the CPU, of all processes; only those of the main process are read.
            channels: C.

        Raises:
            TooFewPointsError: there are fewer points than clusters.
        """
        self.centroids = torch.zeros(self.num_clusters, channels, device=self.device)
        self.counts = torch.zeros(self.num_clusters, dtype=torch.float64, device=self.device)
        if world_size() == 1 or dist.get_rank() == 0:
            found = torch.from_numpy(kmeans(points.numpy(), self.num_clusters, self.iterations, self.seed))
            self.counts += torch.bincount(nearest(points, found), minlength=self.num_clusters).to(self.device)
            self.centroids.copy_(found)
        if world_size() > 1:
            dist.broadcast(self.centroids, src=0)
            dist.broadcast(self.counts, src=0)

    def update(self, points: torch.Tensor) -> None:
        """Move the centroids by one mini-batch; each process gives its own points (n, C), with any n."""
        one_hot = F.one_hot(nearest(points, self.centroids), self.num_clusters).to(points)
        sums, added = one_hot.T @ points, one_hot.sum(dim=0, dtype=torch.float64)
        if world_size() > 1:
            dist.all_reduce(sums)
            dist.all_reduce(added)
        self.counts = self.counts + added
        rate = (added / (self.counts + 1e-6)).to(sums)[:, None]  # 0 for clusters without a point in this batch
        means = sums / added.clamp(min=1).to(sums)[:, None]
        self.centroids = (1 - rate) * self.centroids + rate * means

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the centroids and counts."""
        return {"centroids": self.centroids, "counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from the centroids and counts of :meth:`state_dict`."""
        self.centroids, self.counts = (state[name].to(self.device) for name in ("centroids", "counts"))
