"""Build optimizers and schedules: detectron2's and further ones; some modules can keep a fixed learning rate."""

import logging
import re

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_d2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import LinearParamScheduler, ParamScheduler, PolynomialDecayParamScheduler
from torch import nn

from densesiam_d2.layers import unwrap
from densesiam_d2.solver.lars import LARS

__all__ = ["build_lr_scheduler", "build_optimizer", "fuse"]

logger = logging.getLogger(__name__)

# Of detectron2's box, mask and segmentation heads, and of FCNSemSegHead with its auxiliary head.
_LAST_LAYERS = re.compile(r"(roi_heads|sem_seg_head)\.(\w+\.)*(box_)?predictor\.")


class FixedLRMultiplier(LRMultiplier):
    """A multiplier that leaves parameter groups with ``fix_lr`` at their initial learning rate.

    A resumed run goes on at the checkpoint's iteration, but with its own rates, which may be new.

    Source: the predictor's fixed learning rate of SimSiam (facebookresearch/simsiam, main_simsiam.py).
    """

    def get_lr(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [
            base if group.get("fix_lr") else lr
            for base, lr, group in zip(self.base_lrs, super().get_lr(), groups, strict=True)
        ]

    def load_state_dict(self, state_dict: dict) -> None:
        self.last_epoch = min(state_dict["last_epoch"], self._max_iter)  # SOLVER.MAX_ITER may be lower now
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class PolyWithFloor(ParamScheduler):
    """Polynomial decay from 1 that ends at a floor instead of 0.

    Source: mmsegmentation's "poly" policy with ``min_lr``.
    """

    def __init__(self, power: float, floor: float):
        """Store the power of the decay and the final value, a fraction of the base learning rate."""
        self._poly = PolynomialDecayParamScheduler(1.0, power)
        self._floor = floor

    def __call__(self, where: float) -> float:
        """Return the multiplier when the share ``where`` of training is done."""
        return (1 - self._floor) * self._poly(where) + self._floor


class _BeforeTheEnd(ParamScheduler):
    """A schedule that keeps its value over the last 2e-6 of training, where fvcore's steps of equal length fail."""

    def __init__(self, schedule: ParamScheduler):
        self._schedule = schedule

    def __call__(self, where: float) -> float:
        return self._schedule(min(where, 1 - 2e-6))


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` with detectron2's parameter groups and gradient clipping.

    With ``SOLVER.FIX_PREDICTOR_LR`` the groups of the modules that the model names in ``fixed_lr_modules``, a tuple of
    prefixes of parameter names such as "dense.predictor", have ``fix_lr`` set.
    """
    model = unwrap(model)
    optimizer = _optimizer(cfg.SOLVER, model)
    fixed = _fixed_parameters(model) if cfg.SOLVER.FIX_PREDICTOR_LR else set()
    if fixed:
        optimizer.param_groups[:] = [
            {**group, "params": params, "fix_lr": fix_lr}
            for group in optimizer.param_groups
            for fix_lr in (False, True)
            if (params := [p for p in group["params"] if (p in fixed) == fix_lr])
        ]
    optimizer.register_load_state_dict_post_hook(_match_memory_format)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _optimizer(solver: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _lr_factor(solver, name),
    )
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(params, betas=tuple(solver.ADAMW.BETAS), eps=solver.ADAMW.EPS, fused=True, **common)
    common["momentum"] = solver.MOMENTUM
    if solver.OPTIMIZER == "LARS":
        return LARS(
            params,
            trust_coefficient=solver.LARS.TRUST_COEFFICIENT,
            eps=solver.LARS.EPS,
            lr_in_momentum=solver.LARS.LR_IN_MOMENTUM,
            **common,
        )
    assert solver.OPTIMIZER == "SGD", solver.OPTIMIZER
    optimizer = torch.optim.SGD(params, nesterov=solver.NESTEROV, **common)
    fuse(optimizer)
    return optimizer


def _lr_factor(solver: CfgNode, name: str) -> float:
    """Return the factor on the learning rate of a parameter, by its name.

    detectron2's own ``bias_lr_factor`` would replace the other factors for biases.
    """
    factor = solver.BIAS_LR_FACTOR if name.endswith(".bias") and solver.BIAS_LR_FACTOR is not None else 1.0
    if name.startswith("backbone."):
        return factor * solver.BACKBONE_LR_FACTOR
    return factor * solver.LAST_LAYERS_LR_FACTOR if _LAST_LAYERS.match(name) else factor


def _fixed_parameters(model: nn.Module) -> set[nn.Parameter]:
    fixed = set()
    for name in getattr(model, "fixed_lr_modules", ()):
        params = [p for key, p in model.named_parameters() if key.startswith(f"{name}.")]
        assert params, f"{type(model).__name__}.fixed_lr_modules names {name!r}, which has no parameters"
        fixed.update(params)
    return fixed


def fuse(optimizer: torch.optim.SGD) -> None:
    """Make SGD update all parameters in one operation; the result equals that of plain SGD except for rounding.

    Every parameter gets a momentum buffer of zeros now, because the fused operation fails if a parameter gets its first
    gradient later than the others.
    """
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)  # foreach=True would override fused
        for p in group["params"] if group["momentum"] else ():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Copy loaded state into the memory format of its parameter, because fused operations on the CPU ignore strides."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p).copy_(value)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build a schedule that leaves groups with ``fix_lr`` at their initial learning rate.

    ``SOLVER.LR_SCHEDULER_NAME``: "WarmupConstantLR", "WarmupPolyLR" (``POLY_LR_POWER``, ending at the share
    ``POLY_LR_CONSTANT_ENDING`` of the base rate), or any name of detectron2's.

    Raises:
        ValueError: ``SOLVER.EPOCHS`` has not been turned into iterations, or there is no such schedule.
    """
    solver = cfg.SOLVER
    if solver.EPOCHS > 0 or solver.WARMUP_EPOCHS > 0:
        raise ValueError(
            "SOLVER.EPOCHS or WARMUP_EPOCHS is still set: call densesiam_d2.set_epochs(cfg, number of images) first"
        )
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        logger.warning(
            "SOLVER.WARMUP_ITERS is %d and MAX_ITER %d: the rate never reaches BASE_LR; set a shorter warm-up",
            solver.WARMUP_ITERS,
            solver.MAX_ITER,
        )
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER
        solver.WARMUP_ITERS = solver.MAX_ITER - 1  # else fvcore divides by the length of what follows, 0
    if solver.LR_SCHEDULER_NAME == "WarmupConstantLR":
        decay = LinearParamScheduler(1.0, 1.0)  # fvcore's constant schedule fails after the last step
    elif solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        decay = PolyWithFloor(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING)
    else:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.STEPS = [step for step in solver.STEPS if step < solver.MAX_ITER]  # fvcore refuses others
        scheduler = build_d2_lr_scheduler(cfg, optimizer)  # raises ValueError for an unknown name
        # It has already set the groups' learning rates for warm-up; the one below starts from "initial_lr" again.
        multiplier = scheduler._multiplier
        if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
            multiplier = _BeforeTheEnd(multiplier)
        return FixedLRMultiplier(optimizer, multiplier, solver.MAX_ITER)
    multiplier = WarmupParamScheduler(
        decay,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return FixedLRMultiplier(optimizer, multiplier, solver.MAX_ITER)
