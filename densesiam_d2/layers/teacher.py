"""A teacher whose weights are a moving average of the student's."""

import copy
import math

import torch
from torch import nn

__all__ = ["MomentumTeacher", "cosine_momentum"]


def cosine_momentum(base: float, progress: float) -> float:
    """Return the teacher's momentum, which rises from ``base`` to 1 along a cosine.

    Args:
        base: momentum at the start, in [0, 1].
        progress: share of the training that is done, in [0, 1].

    Source: BYOL, Sec. 3 (arXiv 2006.07733).
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


class MomentumTeacher(nn.Module):
    """Copies of student modules, without gradient, that :meth:`update` moves towards the students.

    Only parameters are averaged; a batch norm of the teacher computes its own running statistics.

    What a state dict lacks of the teacher is filled from the students. MODEL.WEIGHTS usually has a backbone only, so it
    fills both. The model must register the students before the teacher, so that they are loaded first.

    Attributes:
        batch_part: (i, k) if the forward gets part i of k of a batch (SOLVER.ACCUMULATE), set by the training step. The
            teacher moves with the first part only.

    Source: MoCo, Sec. 3.2 (arXiv 1911.05722); BYOL, Sec. 3 (arXiv 2006.07733).
    """

    batch_part = (0, 1)

    def __init__(self, **students: nn.Module):
        """Copy the students; each copy is a child under the same name, such as ``teacher.backbone``."""
        super().__init__()
        self._students = students  # a dict, because submodules would be saved and trained twice
        for name, student in students.items():
            self.add_module(name, copy.deepcopy(student))
        self.requires_grad_(False)
        self._before: list[torch.Tensor] = []  # parameters before the last update; buffers would be saved
        self.register_load_state_dict_pre_hook(_fill_from_students)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Set every parameter to ``momentum * teacher + (1 - momentum) * student``.

        Args:
            momentum: in [0, 1].
        """
        if self.batch_part[0] > 0:
            return
        parameters = list(self.parameters())
        learned = [p for student in self._students.values() for p in student.parameters()]
        if not self._before:
            self._before = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(self._before, parameters)
        torch._foreach_lerp_(parameters, learned, 1 - momentum)

    @torch.no_grad()
    def undo(self) -> None:
        """Set the parameters back to what they were before the last update; a second call changes nothing.

        Buffers are not set back: the training step keeps copies of them.
        """
        if self._before:
            torch._foreach_copy_(list(self.parameters()), self._before)
            self._before = []

    def _apply(self, fn, recurse: bool = True):
        self._before = [fn(tensor) for tensor in self._before]
        return super()._apply(fn, recurse)


def _fill_from_students(teacher: MomentumTeacher, state: dict, prefix: str, *_) -> None:
    """Add to a state dict what it lacks of the teacher."""
    for name, student in teacher._students.items():
        for key, value in student.state_dict(prefix=f"{prefix}{name}.").items():
            if key not in state:
                state[key] = value.clone()
