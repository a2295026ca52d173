"""The contrastive loss with a queue of negatives. Shape shorthand: n queries, m negatives, D embedding."""

import torch
from torch.nn import functional as F

__all__ = ["info_nce"]


def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how badly each query tells its key from the negatives: a cross-entropy over m + 1 candidates.

    Args:
        q: (n, D) queries of norm 1.
        k: (n, D) keys of norm 1; row i is the positive of query i.
        negatives: (m, D) of norm 1, the same for all queries.
        temperature: divides the cosine similarities.

    Returns:
        (n,) losses >= 0; log(m + 1) where all candidates are equal.

    Source: MoCo, Eq. 1 (arXiv 1911.05722).
    """
    with torch.autocast(q.device.type, enabled=False):  # half precision is too coarse for a cosine divided by 0.2
        # Dividing q, not the logits, spares a pass over n * (m + 1) numbers and as many in memory.
        q, k, negatives = q.float() / temperature, k.float(), negatives.float()
        positive = (q * k).sum(dim=1, keepdim=True)  # (n, 1)
        logits = torch.cat([positive, q @ negatives.T], dim=1)  # (n, m + 1)
    return F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64), reduction="none")
