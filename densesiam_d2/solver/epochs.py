"""Turn the length of a training from epochs into iterations."""

import logging

from detectron2.config import CfgNode

__all__ = ["set_epochs"]

logger = logging.getLogger(__name__)


def set_epochs(cfg: CfgNode, num_images: int) -> None:
    """Turn ``SOLVER.EPOCHS`` and ``SOLVER.WARMUP_EPOCHS`` into iterations, then set both keys to 0.

    ``EPOCHS`` above 0 sets ``MAX_ITER``, and turns ``STEPS`` from fractions of the training in (0, 1) into iterations.
    ``WARMUP_EPOCHS`` above 0 sets ``WARMUP_ITERS``. A second call changes nothing, so the result can be saved and
    loaded again. Call this before detectron2's ``auto_scale_workers``, which scales iterations and batch size together.

    Args:
        cfg: a config that is not frozen, changed in place.
        num_images: images of an epoch.
    """
    solver = cfg.SOLVER
    iterations = num_images / solver.IMS_PER_BATCH  # per epoch
    if solver.WARMUP_EPOCHS > 0:
        solver.WARMUP_ITERS = max(1, round(solver.WARMUP_EPOCHS * iterations))
        solver.WARMUP_EPOCHS = 0.0
    if solver.EPOCHS > 0:
        solver.MAX_ITER = max(1, round(solver.EPOCHS * iterations))
        steps = []
        for step in solver.STEPS:
            iteration = round(step * solver.MAX_ITER) if step < 1 else step
            steps.append(max(iteration, steps[-1] + 1 if steps else 1))  # fvcore refuses 0, and two equal steps
        solver.STEPS = tuple(steps)
        logger.info(
            f"SOLVER.EPOCHS {solver.EPOCHS:g}: {solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH:,} images "
            f"({num_images:,} images)"
        )
        solver.EPOCHS = 0.0
