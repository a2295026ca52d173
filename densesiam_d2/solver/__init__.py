"""Optimizers and learning-rate schedules."""

from densesiam_d2.solver.build import build_lr_scheduler, build_optimizer

__all__ = ["build_lr_scheduler", "build_optimizer"]
