"""What saves memory in a step of pretraining, and its time. SimSiam, ResNet-50, 128 pixels; CPU time, two threads.

A step is the trainer's. Memory is the peak above weights and the optimizer's state, so it includes the gradients, which
do not grow with the batch. What a further pair needs follows from batches of 8 and 16 pairs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.utils.events import EventStorage

from benchmarks.harness import Options, Row, measure, peak_mib, ratios
from benchmarks.models import build, random_batch
from densesiam_d2.engine.step import StepTrainer

__all__ = ["run"]

CONFIG = "configs/pretrain_simsiam.yaml"
STAGES = ["stem", "res2", "res3"]


def run(options: Options) -> Iterator[list[Row]]:
    """Measure a plain step, one that computes the first stages again, and one that splits its batch into 4 parts."""
    torch.set_num_threads(2)
    few, many = (random_batch(pairs, options.size(128, 32)) for pairs in (8, 16))
    steps = {
        "plain step": _step(),
        f"MODEL.SSL.CHECKPOINT_STAGES {STAGES}": _step("MODEL.SSL.CHECKPOINT_STAGES", STAGES),
        "SOLVER.ACCUMULATE 4": _step(accumulate=4),
    }
    times = measure({name: partial(step, few) for name, step in steps.items()}, options.repeats)
    less = {"higher_is_better": False}
    for name, step in steps.items():
        # The same step may need a tenth more in another round, depending on what the C library gave back before.
        peaks = [[peak_mib(partial(step, batch)) for _ in range(options.repeats)] for batch in (few, many)]
        yield [
            Row.of(name, "peak MiB, 8 pairs", peaks[0], **less),
            Row.of(name, "peak MiB, 16 pairs", peaks[1], **less),
            Row.of(name, "seconds / those of a plain step", ratios(times, name, "plain step"), **less),
        ]


def _step(*words, accumulate: int = 1) -> Callable[[dict], None]:
    """Return a function that takes a step and leaves no gradients, so that the peak of the next one has its own."""
    model, optimizer = build(CONFIG, *words)
    model.metrics_due = lambda: False
    batches = []
    trainer = StepTrainer(model, iter(batches.pop, None), optimizer, accumulate=accumulate)
    trainer.iter = 0

    def step(batch: dict) -> None:
        batches.append(batch)
        with EventStorage():
            trainer.run_step()
        optimizer.zero_grad()

    return step
