"""What saves memory in a step of pretraining, and its time; the memory of the recipes for own data.

A step is the trainer's. Memory is the peak above weights and the optimizer's state, so it includes the gradients, which
do not grow with the batch. What a further image needs follows from two sizes of the batch. CPU time, two threads.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from benchmarks.harness import Options, Row, measure, peak_mib, ratios
from benchmarks.models import build, random_batch
from densesiam_d2.engine.step import StepTrainer

__all__ = ["run"]

CONFIG = "configs/pretrain_simsiam.yaml"
STAGES = ["stem", "res2", "res3"]


def run(options: Options) -> Iterator[list[Row]]:
    """Measure SimSiam R50 at 128 pixels: plain, with stages computed again, with a split batch; then configs/own."""
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
    del steps
    for name, batches in _own_batches(options).items():
        step = _step(config=f"configs/own/{name}.yaml")
        for images, batch in batches.items():
            step(batch)
            peaks = [peak_mib(partial(step, batch)) for _ in range(options.repeats)]
            yield [Row.of(f"configs/own/{name}.yaml", f"peak MiB, {images} images", peaks, **less)]


def _own_batches(options: Options) -> dict[str, dict[int, dict | list[dict]]]:
    """Return random batches of two sizes for each yaml of configs/own with a MobileNetV2."""
    side = options.size(224, 64)
    return {
        "pretrain_mobilenet_v2": {n: random_batch(n, side) for n in (8, 16)},
        "fcn_mobilenet_v2": {n: [_labelled(256, 256) for _ in range(n)] for n in (4, 8)},
        "mask_rcnn_mobilenet_v2_FPN": {n: [_labelled(256, 384) for _ in range(n)] for n in (2, 4)},
    }


def _labelled(height: int, width: int) -> dict:
    """Return what detectron2's mapper would, with a grid of 40 objects of 24 pixels and a label map of one class."""
    rows, columns = torch.arange(40) // 8 * 30, torch.arange(40) % 8 * 30
    boxes = torch.stack([columns, rows, columns + 24, rows + 24], dim=1)
    masks = torch.zeros(40, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((height, width), gt_boxes=Boxes(boxes.float()), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.zeros(40, dtype=torch.long)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    sem_seg = torch.zeros(height, width, dtype=torch.long)
    return {"image": image, "height": height, "width": width, "instances": instances, "sem_seg": sem_seg}


def _step(*words, config: str = CONFIG, accumulate: int = 1) -> Callable[[dict | list[dict]], None]:
    """Return a function that takes a step and leaves no gradients, so that the peak of the next one has its own."""
    model, optimizer = build(config, *words, "MODEL.WEIGHTS", "")
    batches = []
    trainer = StepTrainer(model, iter(batches.pop, None), optimizer, accumulate=accumulate)
    trainer.iter = 0

    def step(batch: dict | list[dict]) -> None:
        batches.append(batch)
        with EventStorage():
            trainer.run_step()
        optimizer.zero_grad()

    return step
