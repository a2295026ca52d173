"""A queue of the features of recent batches: the negatives of contrastive losses."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["FeatureQueue"]


class FeatureQueue(nn.Module):
    """Holds the last ``length`` features that were pushed; the oldest are overwritten first.

    A push changes ``features`` in place, but autograd may still need the old values for the gradient of a loss. So a
    loss must use ``queue.features.clone()``.

    Attributes:
        batch_part: (i, k) if the forward gets part i of k of a batch (SOLVER.ACCUMULATE), set by the training step. The
            keys of all parts are pushed together with the last part.

    Source: MoCo, Sec. 3.2 (arXiv 1911.05722).
    """

    undoes_buffers = True  # the training step needs no copy of this module's buffers
    batch_part = (0, 1)

    def __init__(self, dim: int, length: int):
        """Fill the queue with random directions of norm 1.

        The generator has a fixed seed, so that they are equal in all processes: DDP without ``broadcast_buffers`` does
        not copy them from the main process.

        Args:
            dim: number of channels of a feature.
            length: number of features.
        """
        super().__init__()
        features = torch.randn(length, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("features", F.normalize(features, dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))  # the row that is overwritten next
        self._overwritten: tuple[torch.Tensor, ...] | None = None
        self._earlier_parts: list[torch.Tensor] = []  # keys of this batch that are not pushed yet

    @torch.no_grad()
    def push(self, keys: torch.Tensor) -> None:
        """Overwrite the oldest rows with keys. Push once per forward, because :meth:`undo` undoes only the last push.

        Args:
            keys: (n, dim) keys of all processes, in the same order in each (:func:`~densesiam_d2.layers.gather`). Then
                all processes have the same queue, and it is enough that the main process saves its own. If n is larger
                than ``length``, only the last ``length`` keys are stored.
        """
        part, num_parts = self.batch_part
        if part < num_parts - 1:
            self._earlier_parts.append(keys.detach())
            return
        keys = torch.cat([*self._earlier_parts, keys])
        self._earlier_parts.clear()
        length = len(self.features)
        kept = keys[-length:].to(self.features)
        first = self.pointer + (len(keys) - len(kept))
        rows = (first + torch.arange(len(kept), device=first.device)) % length
        self._overwritten = rows, self.features[rows], self.pointer.clone()
        self.features[rows] = kept
        self.pointer.copy_((self.pointer + len(keys)) % length)

    @torch.no_grad()
    def undo(self) -> None:
        """Set the buffers back to what they were before the last push; a second call changes nothing."""
        if self._overwritten:
            rows, features, pointer = self._overwritten
            self.features[rows] = features
            self.pointer.copy_(pointer)
            self._overwritten = None
