"""Schedules that fit the number of labels, or a budget: the shape of a config's schedule with another length."""

import math

from detectron2.config import CfgNode

__all__ = ["LAST_LAYERS_LR_FACTOR", "low_shot_iterations", "stretched"]

# Factor on the learning rate of the last layers with few labels (see ``low_shot_iterations`` for the source).
LAST_LAYERS_LR_FACTOR = 4

# COCO train2017, its 1x schedule of 90,000 iterations of 16 images, and 3,600 such iterations, the shortest schedule.
_COCO_IMAGES, _ONE_TIMES, _SHORTEST = 118_287, 90_000 * 16, 3_600 * 16


def low_shot_iterations(labels: int, batch: int, *, length: float = 1.0) -> int:
    """Return how long to train with a number of labelled images.

    ==========================  ========================================================================
    labelled images             images that the training sees
    ==========================  ========================================================================
    more than 4,731 (4 %)       12.2 epochs, as detectron2's 1x schedule of COCO
    1,183 (1 %) to 4,731        57,600, which are 3,600 iterations of 16
    fewer than 1,183            57,600 * sqrt(labels / 1,183): 5,296 with 10 labels, 16,747 with 100
    ==========================  ========================================================================

    Source: the first two rows are the schedules of CutLER's COCO-Semisupervised configs (facebookresearch/CutLER,
    cutler/model_zoo/configs/COCO-Semisupervised) for 1, 2, 5, 10 and 100 % of COCO, with four times the learning rate
    on the last layers. The third row is inferred, because nothing is published for so few images: with a square root,
    fewer images are seen in total, and each of them more often.

    Args:
        labels: number of labelled images.
        batch: images in an iteration.
        length: factor on the result, for quick trials or data that needs longer.
    """
    one_percent = _COCO_IMAGES / 100
    images = max(_SHORTEST * min(1.0, math.sqrt(labels / one_percent)), _ONE_TIMES * labels / _COCO_IMAGES)
    return max(1, round(length * images / batch))


def stretched(cfg: CfgNode, iterations: int) -> list[str]:
    """Return the options that give a config's schedule another length.

    The steps stay at the same shares of the training; those that rounding puts at its end are left out. The warm-up
    stays as long as it is, but takes a tenth of the training at most; a warm-up in epochs takes a tenth. The model is
    saved five times, and the newest checkpoint is kept.

    Args:
        cfg: the config; its SOLVER.STEPS and warm-up are read.
        iterations: the new length.

    Returns:
        Keys and values, as words of a command line.
    """
    solver = cfg.SOLVER
    whole = 1 if solver.EPOCHS > 0 else solver.MAX_ITER  # with EPOCHS, STEPS are shares already
    steps = (round(step / whole * iterations) for step in solver.STEPS)
    tenth = iterations // 10
    options = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": tuple(step for step in steps if step < iterations),
        "SOLVER.WARMUP_ITERS": tenth if solver.WARMUP_EPOCHS > 0 else min(solver.WARMUP_ITERS, tenth),
        "SOLVER.WARMUP_EPOCHS": 0.0,
        "SOLVER.CHECKPOINT_PERIOD": max(1, iterations // 5),
        "SOLVER.CHECKPOINT_KEEP_LAST": 1,
        "SOLVER.CHECKPOINT_KEEP_EVERY": 0,
    }
    return [str(word) for pair in options.items() for word in pair]
