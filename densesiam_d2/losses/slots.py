"""SlotCon: assign pixels to prototypes, pool them into slots, and compare the slots of two views.

Shape shorthand: N images, D embedding, K prototypes and as many slots per view, h,w cells, R slots of this process that
are compared with M keys.
"""

import torch
from torch.nn import functional as F

from densesiam_d2.layers import mean_over_images

__all__ = ["active_slots", "pool_slots", "prototype_scores", "slot_infonce"]

EPS = 1e-6  # added to each assignment, so that a slot without pixels has a mean too


def prototype_scores(z: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return the cosine of every pixel with every prototype.

    Args:
        z: (N, D, h, w) projections.
        prototypes: (K, D).

    Returns:
        (N, K, h, w) float32 in [-1, 1].

    Source: SlotCon, Sec. 3.2 (arXiv 2205.15288); models/slotcon.py in CVMI-Lab/SlotCon.
    """
    with torch.autocast(z.device.type, enabled=False):  # half precision is too coarse for a cosine divided by 0.07
        return torch.einsum("kd,ndhw->nkhw", F.normalize(prototypes.float(), dim=1), F.normalize(z.float(), dim=1))


def pool_slots(z: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Average the projections of a view for each slot, weighted by the soft assignment of the pixels.

    Args:
        z: (N, D, h, w) projections; they are not normalised.
        scores: (N, K, h, w) from :func:`prototype_scores`.
        temperature: divides the scores before the softmax over the prototypes.

    Returns:
        (N, K, D) float32 slots.

    Source: SlotCon, Sec. 3.3 (arXiv 2205.15288); models/slotcon.py in CVMI-Lab/SlotCon for the un-normalised
    projections and for 1e-6.
    """
    shares = (scores.float() / temperature).softmax(dim=1) + EPS
    shares = shares / shares.sum(dim=(2, 3), keepdim=True)
    with torch.autocast(z.device.type, enabled=False):
        return torch.einsum("ndhw,nkhw->nkd", z.float(), shares)


def active_slots(scores: torch.Tensor) -> torch.Tensor:
    """Return which slots of each view have a pixel: (N, K) bool, True if the prototype has the best score somewhere.

    Args:
        scores: (N, K, h, w) from :func:`prototype_scores`.

    Source: SlotCon, Sec. 3.3 (arXiv 2205.15288).
    """
    winners = scores.argmax(dim=1).flatten(1)  # (N, h * w)
    return torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, winners, True)


def slot_infonce(p: torch.Tensor, keys: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the InfoNCE loss of predicted slots against the slots of all images, times 2 * temperature.

    The mean is over the rows of all processes, which may have different numbers of rows, also none.

    Args:
        p: (R, D) predicted slots of this process.
        keys: (M, D) slots of the other view, of all images in all processes; no gradient flows into them.
        positives: (R,) int64, the row of ``keys`` that is the positive of each row of ``p``.
        temperature: divides the cosine similarities.

    Returns:
        Scalar >= 0; 0 when no process has a row.

    Source: SlotCon, Sec. 3.3 (arXiv 2205.15288); models/slotcon.py in CVMI-Lab/SlotCon for the factor. There, the mean
    is over the rows of each process.
    """
    with torch.autocast(p.device.type, enabled=False):
        logits = F.normalize(p.float(), dim=1) @ F.normalize(keys.detach().float(), dim=1).T / temperature  # (R, M)
    loss = F.cross_entropy(logits, positives, reduction="none")  # (R,)
    # "valid" makes this the mean over the rows of all processes; without it, it would be NaN for no row.
    return 2 * temperature * mean_over_images(loss, valid=torch.ones_like(loss, dtype=torch.bool))
