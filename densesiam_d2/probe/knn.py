"""Classify cells by the votes of their nearest neighbours in cosine similarity.

Shape shorthand: N cells to classify, M cells in memory, D channels, K classes.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

__all__ = ["nearest_votes"]


def nearest_votes(
    queries: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    *,
    ks: Sequence[int],
    num_classes: int,
    block: int,
) -> dict[int, torch.Tensor]:
    """Return the share of each class among the k nearest cells, by brute force.

    Args:
        queries: (N, D) standardised features.
        memory: (M, D) standardised features, of length 1 each.
        labels: (M,) int64 classes.
        ks: numbers of neighbours, at most M.
        num_classes: K.
        block: number of queries at a time, so that block * M numbers are in memory.

    Returns:
        k -> (N, K) float32 shares, which sum to 1.
    """
    votes = {k: [] for k in ks}
    for part in queries.split(block):
        similarity = part @ memory.T  # (block, M): cosine times the query's length, which does not change the order
        neighbours = labels[similarity.topk(max(ks), dim=1).indices]  # (block, k), nearest first
        one_hot = F.one_hot(neighbours, num_classes).float()
        for k in ks:
            votes[k].append(one_hot[:, :k].mean(dim=1))
    return {k: torch.cat(parts) for k, parts in votes.items()}
