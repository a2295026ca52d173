"""A teacher whose weights are a moving average of the student's."""

import copy
import math

import torch
from torch import nn

__all__ = ["MomentumTeacher", "cosine_momentum"]


def cosine_momentum(base: float, progress: float) -> float:
    """Return the teacher's momentum: 0 in the first step, then rising from ``base`` to 1 along a cosine.

    The first step copies the student into the teacher, because MODEL.WEIGHTS fills the student only.

    Args:
        base: momentum at the start, in [0, 1].
        progress: share of the training that is done, in [0, 1].

    Source: BYOL, Sec. 3 (arXiv 2006.07733).
    """
    return 0.0 if progress == 0 else 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


class MomentumTeacher(nn.Module):
    """Copies of student modules, without gradient, that :meth:`update` moves towards the students.

    Only parameters are averaged; a batch norm of the teacher computes its own running statistics.

    Attributes:
        batch_part: (i, k) if the forward gets part i of k of a batch (SOLVER.ACCUMULATE), set by the training step. The
            teacher moves with the first part only.

    Source: MoCo, Sec. 3.2 (arXiv 1911.05722); BYOL, Sec. 3 (arXiv 2006.07733).
    """

    batch_part = (0, 1)

    def __init__(self, **students: nn.Module):
        """Copy the students; each copy is a child under the same name, such as ``teacher.backbone``."""
        super().__init__()
        for name, student in students.items():
            self.add_module(name, copy.deepcopy(student))
        self.requires_grad_(False)
        self._before: list[torch.Tensor] = []  # a list, because buffers would be saved
        self._undone, self._copied = True, False  # state of the last update

    @torch.no_grad()
    def update(self, momentum: float, **students: nn.Module) -> None:
        """Set every parameter to ``momentum * teacher + (1 - momentum) * student``.

        With momentum 0 the buffers are copied too. If such a copy is undone, the next update is also a copy, with any
        momentum; otherwise a training that drops its first step would never copy the student.

        Args:
            momentum: in [0, 1].
            **students: the modules that the constructor copied, under the same names.
        """
        if self.batch_part[0] > 0:
            return
        copies = dict(self.named_children())
        assert students.keys() == copies.keys(), f"the teacher has {list(copies)}, not {list(students)}"
        parameters = list(self.parameters())
        learned = [p for name in copies for p in students[name].parameters()]
        if not self._before:
            self._before = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(self._before, parameters)
        self._copied = momentum == 0 or (self._undone and self._copied)
        self._undone = False
        if self._copied:
            torch._foreach_copy_(parameters, learned)
            for name, module in copies.items():
                for buffer, new in zip(module.buffers(), students[name].buffers(), strict=True):
                    buffer.copy_(new)
        else:
            torch._foreach_lerp_(parameters, learned, 1 - momentum)

    @torch.no_grad()
    def undo(self) -> None:
        """Set the parameters back to what they were before the last update; a second call changes nothing.

        Buffers are not set back: the training step keeps copies of them.
        """
        if not self._undone:
            torch._foreach_copy_(list(self.parameters()), self._before)
            self._undone = True

    def _apply(self, fn, recurse: bool = True):
        self._before = [fn(tensor) for tensor in self._before]
        return super()._apply(fn, recurse)
