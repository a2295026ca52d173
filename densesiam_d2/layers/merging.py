"""Merge many clusters into few: clusters that two views of a point mix up come together."""

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from densesiam_d2.layers.distributed import world_size

__all__ = ["ClusterMerging", "merge_clusters"]

STARTS = 20  # random starts, of which the best end is taken
MAX_SWEEPS = 50


class ClusterMerging(nn.Module):
    """Count which clusters the two views of a point fall into, and merge M clusters into K by these counts.

    What training counts is a buffer, so it is in checkpoints. The groups follow from it, and are made when they are
    needed.

    Attributes:
        batch_part: (i, k) if the forward gets part i of k of a batch (SOLVER.ACCUMULATE), set by the training step. Old
            counts lose weight with the first part only.
    """

    joint: torch.Tensor
    batch_part = (0, 1)

    def __init__(self, num_clusters: int, num_groups: int, momentum: float = 0.99):
        """Start without counts.

        Args:
            num_clusters: M.
            num_groups: K, at most M.
            momentum: factor by which old counts lose weight with every batch.
        """
        super().__init__()
        self.num_groups, self.momentum = num_groups, momentum
        self.register_buffer("joint", torch.zeros(num_clusters, num_clusters, dtype=torch.float64))
        self._merged: tuple[torch.Tensor, torch.Tensor] | None = None  # (joint, the groups that were made of it)

    @torch.no_grad()
    def count(self, z1: torch.Tensor, z2: torch.Tensor, valid: torch.Tensor) -> None:
        """Count the clusters of the common points of a batch, over all processes.

        Args:
            z1, z2: (N, M, S, S) logits of the two views.
            valid: (N,) bool, the images to count.
        """
        num = len(self.joint)
        pairs = z1.argmax(dim=1) * num + z2.argmax(dim=1)  # (N, S, S)
        weights = valid.view(-1, 1, 1).expand_as(pairs).to(self.joint.dtype)
        # Selected images and bincount would wait for a GPU.
        counts = self.joint.new_zeros(num**2).scatter_add_(0, pairs.flatten(), weights.flatten()).view(num, num)
        if world_size() > 1:
            dist.all_reduce(counts)
        if self.batch_part[0] == 0:
            self.joint.mul_(self.momentum)
        self.joint.add_(counts)

    def groups(self) -> torch.Tensor:
        """Return the group of each cluster, (M,) int64 on the CPU."""
        joint = self.joint.cpu()
        if self._merged is None or not torch.equal(self._merged[0], joint):
            self._merged = joint.clone(), torch.from_numpy(merge_clusters(joint.numpy(), self.num_groups))
        return self._merged[1]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K, h, w) of the groups: the logsumexp of those of their clusters, (N, M, h, w)."""
        groups = self.groups().to(z.device)
        return torch.stack([z[:, groups == k].logsumexp(dim=1) for k in range(self.num_groups)], dim=1)


def merge_clusters(joint: np.ndarray, num_groups: int) -> np.ndarray:
    """Group clusters such that the group of a point in one view tells most of its group in the other view.

    The mutual information of the groups of two views is what IIC maximises by training. Here it is maximised over the
    groups alone: one cluster after the other moves to the group where the mutual information is largest, until none
    moves. The best of several random starts is returned.

    Args:
        joint: (M, M) counts; [i, j]: how many points are in cluster i in one view and in cluster j in the other. With
            no counts at all, the clusters are spread evenly over the groups.
        num_groups: K, at most M.

    Returns:
        (M,) int64, groups from 0 to K - 1; none is empty.

    Source: sequential information bottleneck (Slonim, Friedman, Tishby, SIGIR 2002), with equal groups in both views.
    """
    num = len(joint)
    p = joint + joint.T if joint.any() else np.eye(num)
    p = p / p.sum()
    rng = np.random.default_rng(0)
    ends = [_move_until_stable(p, rng.permutation(np.arange(num) % num_groups), num_groups, rng) for _ in range(STARTS)]
    return max(ends, key=lambda end: end[1])[0]


def _move_until_stable(
    p: np.ndarray, groups: np.ndarray, num_groups: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Move clusters between groups; return the groups and their mutual information in nats."""
    every = np.arange(num_groups)
    to_groups = p @ np.eye(num_groups)[groups]  # (M, K): cluster in one view, group in the other
    merged = np.eye(num_groups)[groups].T @ to_groups  # (K, K)
    for _ in range(MAX_SWEEPS):
        moved = False
        for i in rng.permutation(len(p)):
            old = groups[i]
            if (groups == old).sum() == 1:
                continue
            row, own = to_groups[i].copy(), p[i, i]
            row[old] -= own
            without = merged.copy()
            without[old] -= row
            without[:, old] -= row
            without[old, old] -= own
            tried = np.repeat(without[None], num_groups, axis=0)  # [k]: the cluster in group k
            tried[every, every] += row
            tried[every, :, every] += row
            tried[every, every, every] += own
            information = _mutual_information(tried)
            new = int(information.argmax())
            if information[new] > information[old] + 1e-12:
                groups[i], merged, moved = new, tried[new], True
                to_groups[:, old] -= p[:, i]
                to_groups[:, new] += p[:, i]
        if not moved:
            break
    return groups, float(_mutual_information(merged))


def _mutual_information(joint: np.ndarray) -> np.ndarray:
    """Return the mutual information in nats of symmetric joint distributions (..., K, K)."""
    return _sum_of_p_log_p(joint, (-2, -1)) - 2 * _sum_of_p_log_p(joint.sum(axis=-1), (-1,))


def _sum_of_p_log_p(p: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (p * np.log(np.maximum(p, 1e-300))).sum(axis=axes)
