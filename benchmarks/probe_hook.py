"""What TEST.PROBE costs: the same pretraining with and without it, and its share at the default period."""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import get_cfg

from benchmarks.harness import Options, Row
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.samples.scenes import write_scenes

__all__ = ["run"]

CONFIG = "configs/own/pretrain_mobilenet_v2.yaml"


def run(options: Options) -> Iterator[list[Row]]:
    """Pretrain on as many images as the nuclei have (393, probed with 129), for a few iterations of the recipe."""
    short, long = options.size(2, 1), options.size(6, 2)
    iteration, probe = [], []
    with tempfile.TemporaryDirectory() as folder:
        sets = {"train": options.size(393, 8), "test": options.size(129, 8)}
        for seed, (name, num) in enumerate(sets.items()):
            write_scenes(Path(folder) / name, num, seed, 160)
        for _ in range(options.size(min(options.repeats, 3), 1)):
            plain = _seconds(folder, long, options)
            iteration.append((plain - _seconds(folder, short, options)) / (long - short))
            # One probe before the first iteration, one after the last.
            probe.append((_seconds(folder, long, options, *_probe_words(folder, long)) - plain) / 2)
    cfg = get_cfg()
    add_densesiam_config(cfg)
    period = cfg.TEST.PROBE.PERIOD
    share = [100 * a / (period * b) for a, b in zip(probe, iteration, strict=True)]
    less = {"higher_is_better": False}
    yield [
        Row.of("probe during pretraining", "core-seconds of an iteration without", iteration, **less),
        Row.of("probe during pretraining", "core-seconds of a probe: the run with, minus without", probe, **less),
        Row.of("probe during pretraining", f"% of {period} iterations", share, goal=5.0, **less),
    ]


def _probe_words(folder: str, period: int) -> list[str]:
    of = "coco:{0}/{1}/instances.json,images={0}/{1}/images"
    train, test = (of.format(folder, name) for name in ("train", "test"))
    return ["TEST.PROBE.TRAIN", train, "TEST.PROBE.TEST", test, "TEST.PROBE.PERIOD", str(period)]


def _seconds(folder: str, iterations: int, options: Options, *words: str) -> float:
    """Return the CPU time of a pretraining with all its processes."""
    small = ["SOLVER.IMS_PER_BATCH", "4", "INPUT.SSL.VIEW_SIZE", "64", "TEST.PROBE.SIZE", "64"] if options.quick else []
    words = [*words, *small, "SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", str(iterations), "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TRAIN", f"folder:{folder}/train/images", "DATALOADER.NUM_WORKERS", "1", "SEED", "0"]
    words += ["OUTPUT_DIR", tempfile.mkdtemp(dir=folder)]
    command = [sys.executable, "train_net.py", "--config-file", CONFIG, *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
