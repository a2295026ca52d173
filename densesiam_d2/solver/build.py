"""Optimizer and schedule: detectron2's, plus modules of fixed learning rate, constant and polynomial decay."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_d2_lr_scheduler
from detectron2.solver import build_optimizer as build_d2_optimizer
from fvcore.common.param_scheduler import LinearParamScheduler, ParamScheduler, PolynomialDecayParamScheduler
from torch import nn

__all__ = ["build_lr_scheduler", "build_optimizer", "fuse"]


class FixedLRMultiplier(LRMultiplier):
    """A multiplier that leaves parameter groups with ``fix_lr`` at their initial learning rate.

    Source: the predictor's fixed learning rate of SimSiam (facebookresearch/simsiam, main_simsiam.py).
    """

    def get_lr(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [
            base if group.get("fix_lr") else lr
            for base, lr, group in zip(self.base_lrs, super().get_lr(), groups, strict=True)
        ]


class PolyWithFloor(ParamScheduler):
    """Polynomial decay from 1 that ends at a floor instead of 0.

    Source: mmsegmentation's "poly" policy with ``min_lr``.
    """

    def __init__(self, power: float, floor: float):
        """Take the power of the decay and the value at its end, as a fraction of the base learning rate."""
        self._poly = PolynomialDecayParamScheduler(1.0, power)
        self._floor = floor

    def __call__(self, where: float) -> float:
        """Return the multiplier at the share ``where`` of training."""
        return (1 - self._floor) * self._poly(where) + self._floor


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build detectron2's SGD, fused into one operation, and mark the groups of ``SOLVER.FIXED_LR_MODULES``.

    Raises:
        ValueError: a name there is no submodule with trainable parameters.
    """
    optimizer = build_d2_optimizer(cfg, model)
    fixed = set()
    for name in cfg.SOLVER.FIXED_LR_MODULES:
        params = [p for key, p in model.named_parameters() if key.startswith(f"{name}.")]
        if not params:
            children = sorted({".".join(key.split(".")[:2]) for key, _ in model.named_parameters()})
            raise ValueError(f"SOLVER.FIXED_LR_MODULES names {name!r}, which has no parameters; there are: {children}")
        fixed.update(params)
    if fixed:
        optimizer.param_groups[:] = [
            {**group, "params": params, "fix_lr": fix_lr}
            for group in optimizer.param_groups
            for fix_lr in (False, True)
            if (params := [p for p in group["params"] if (p in fixed) == fix_lr])
        ]
    fuse(optimizer)
    return optimizer


def fuse(optimizer: torch.optim.SGD) -> None:
    """Make SGD update all parameters in one operation, which the device itself can leave out.

    Equal to the plain one up to rounding, in a third of its time on the CPU.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
        for p in group["params"] if group["momentum"] else ():
            # Zero is what there was before the first step; that one, left out, would leave it uninitialised.
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build a schedule that respects fixed groups.

    ``SOLVER.LR_SCHEDULER_NAME``: "WarmupConstantLR", "WarmupPolyLR" (``POLY_LR_POWER``, ending at the
    share ``POLY_LR_CONSTANT_ENDING`` of the base rate), or
    any name of detectron2's.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupConstantLR":
        decay = LinearParamScheduler(1.0, 1.0)  # fvcore's constant one refuses the call after the last step
    elif solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        decay = PolyWithFloor(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING)
    else:
        scheduler = build_d2_lr_scheduler(cfg, optimizer)  # raises for a name that nobody knows
        # It has warmed up the groups' learning rates already; the scheduler below starts from "initial_lr" as it did.
        return FixedLRMultiplier(optimizer, scheduler._multiplier, solver.MAX_ITER)
    multiplier = WarmupParamScheduler(
        decay,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return FixedLRMultiplier(optimizer, multiplier, solver.MAX_ITER)
