"""Two processes on the CPU: the cost of sharing a step, its memory, and synced batch norm against the joint batch."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.layers import get_norm
from detectron2.utils import comm

from benchmarks.harness import Options, Row, peak_mib
from benchmarks.models import R18, build, random_batch, train_step
from densesiam_d2.engine.trainer import distribute

__all__ = ["run"]

CONFIG = "configs/pretrain.yaml"


def run(options: Options) -> Iterator[list[Row]]:
    """Measure R18, 4 images for each process."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or the processes would claim GPUs
        launch(_main, 2, dist_url="auto", args=(options, str(result)))
        found = json.loads(result.read_text())
    less = {"higher_is_better": False}
    yield [
        Row.of("step of two processes", "DDP / without all-reduce", found["ddp"], goal=1.10, **less),
        Row.of("step of two processes", "synced BN / BN", found["synced"], **less),
        Row.of("synced batch norm", "largest error against the joint batch", [found["error"]], goal=1e-5, **less),
        Row.of("memory of a process in training", "MiB, one process", [found["mib"][0]], **less),
        Row.of("memory of a process in training", "MiB, each of two", [found["mib"][1]], **less),
    ]


def _main(options: Options, result: str) -> None:
    torch.set_num_threads(1)
    batch = random_batch(options.size(4, 2), options.size(224, 64))
    plain_words = [*R18, "MODEL.RESNETS.NORM", "BN", "MODEL.SSL.NORM", "BN"]
    models = {"plain": build(CONFIG, *plain_words), "synced": build(CONFIG, *R18)}
    steps = {}
    for name, (model, optimizer) in models.items():
        steps[name] = train_step(distribute(model), optimizer, batch)
    shared = distribute(models["plain"][0])
    alone = train_step(shared, models["plain"][1], batch)

    def without_sharing() -> None:
        with shared.no_sync():
            alone()

    steps["no_sync"] = without_sharing
    times = {name: [] for name in steps}
    for turn in range(options.repeats + 1):
        for name, step in steps.items():
            comm.synchronize()
            begin = time.perf_counter()
            step()
            comm.synchronize()
            if turn:
                times[name].append(time.perf_counter() - begin)
    error = _error_of_synced_norm()
    mib = [peak_mib(lambda shared=shared: _train(plain_words, batch, shared)) for shared in (False, True)]
    if comm.is_main_process():
        found = {
            "ddp": [a / b for a, b in zip(times["plain"], times["no_sync"], strict=True)],
            "synced": [a / b for a, b in zip(times["synced"], times["plain"], strict=True)],
            "error": error,
            "mib": mib,
        }
        Path(result).write_text(json.dumps(found))


def _train(words: list, batch: dict, shared: bool) -> None:
    """Build a model and take two steps, the second with all that the first one keeps."""
    model, optimizer = build(CONFIG, *words)
    step = train_step(distribute(model) if shared else model, optimizer, batch)
    for _ in range(2):
        step()


def _error_of_synced_norm() -> float:
    x = torch.randn(8, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    synced, joint = get_norm("naiveSyncBN_N", 16), torch.nn.BatchNorm2d(16)
    share = x.chunk(2)[comm.get_rank()]
    return float((synced(share) - joint(x).chunk(2)[comm.get_rank()]).detach().abs().max())
