"""Optimizers and learning-rate schedules."""

from densesiam_d2.solver.build import build_lr_scheduler, build_optimizer
from densesiam_d2.solver.epochs import set_epochs
from densesiam_d2.solver.lars import LARS

__all__ = ["LARS", "build_lr_scheduler", "build_optimizer", "set_epochs"]
