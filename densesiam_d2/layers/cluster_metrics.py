"""Numbers that show, without labels, how points are assigned to clusters."""

import math

import torch

__all__ = ["cluster_metrics"]


def cluster_metrics(z1: torch.Tensor, z2: torch.Tensor, valid: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Describe the assignment of the points of a batch to K clusters.

    A point's cluster is the argmax of its logits, its assignment their softmax. All points of both views count.

    - ``used_clusters``: number of clusters with at least one point.
    - ``largest_cluster``: share of the points in the largest cluster, from 1/K to 1. Near 1: one cluster has taken all.
    - ``usage_entropy``: entropy of the clusters' shares of the points over log K. 1: all have the same number; 0: one
      cluster has all points.
    - ``assignment_entropy``: entropy of the mean assignment over log K, the same for soft assignments. It stays near 1
      if batch norm gives the logits of every cluster the same mean and variance, as in DenseSiam.
    - ``pixel_entropy``: mean entropy of the assignment of a single point over log K. 0: every point is sure of its
      cluster; 1: no point prefers any.
    - ``view_agreement``: share of the common points that have the same cluster in both views.

    Args:
        z1: (N, K, ...) logits, K > 1.
        z2: (N, K, ...) logits of the other view at the same points.
        valid: (N,) bool, the images to use; None uses all.

    Returns:
        0-dim float32 tensors by name; {} without a valid image.
    """
    views = [z1, z2]
    if valid is not None:
        views = [z[valid] for z in views]
    if not len(views[0]):
        return {}
    views = [z.float().flatten(2).transpose(1, 2).flatten(0, 1) for z in views]  # (points, K)
    num_clusters = views[0].shape[1]
    labels, assignment = [z.argmax(dim=1) for z in views], torch.cat(views).softmax(dim=1)
    counts = torch.bincount(torch.cat(labels), minlength=num_clusters)
    shares = counts / counts.sum()
    return {
        "used_clusters": (counts > 0).sum().float(),
        "largest_cluster": shares.max(),
        "usage_entropy": torch.special.entr(shares).sum() / math.log(num_clusters),
        "assignment_entropy": torch.special.entr(assignment.mean(dim=0)).sum() / math.log(num_clusters),
        "pixel_entropy": torch.special.entr(assignment).sum(dim=1).mean() / math.log(num_clusters),
        "view_agreement": (labels[0] == labels[1]).float().mean(),
    }
