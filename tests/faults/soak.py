"""Train for long on images of which 5 % are unreadable, and see whether memory or open files grow.

python -m tests.faults.soak --iterations 2000
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from statistics import median, median_high

from detectron2.engine import HookBase

import train_net
from tests.faults.runs import options, train, write_images

VARIABLE = "DENSESIAM_D2_TEST_SOAK"
EVERY = 25


class UsageHook(HookBase):
    """Writes resident memory (kB) and open files of the process and its workers, every 25 iterations."""

    def after_step(self) -> None:
        if self.trainer.iter % EVERY == 0:
            pids = [os.getpid(), *sorted(child.pid for child in multiprocessing.active_children())]
            usage = {"iteration": self.trainer.iter, "kb": [*map(_memory, pids)], "files": [*map(_files, pids)]}
            with Path(os.environ[VARIABLE]).open("a") as file:
                file.write(json.dumps(usage) + "\n")


def _memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def train_main(cfg, args):
    """Train with the hook."""
    build_hooks = train_net.Trainer.build_hooks
    train_net.Trainer.build_hooks = lambda self: [*build_hooks(self), UsageHook()]
    return train_net.main(cfg, args)


def soak(iterations: int, folder: Path) -> list[dict]:
    """Train with two workers, and return what was written."""
    images = write_images(folder / "scenes", num=100)
    for file in sorted(images.iterdir())[::20]:
        file.write_bytes(file.read_bytes()[:300])
    words = options(images, folder / "out", "SOLVER.MAX_ITER", iterations, "DATALOADER.NUM_WORKERS", 2)
    words += ["SOLVER.CHECKPOINT_PERIOD", "500", "SOLVER.CHECKPOINT_KEEP_LAST", "2"]
    usage = folder / "usage.jsonl"
    done = train(words, module="tests.faults.soak", timeout=3600, **{VARIABLE: str(usage)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((folder / "out" / "quarantine.jsonl").read_text().splitlines()) == 5
    return [json.loads(line) for line in usage.read_text().splitlines()]


def growth(rows: list[dict], key: str) -> list[float]:
    """Return how much each process grew per 100 iterations in the second half, by the medians of its quarters."""
    second = rows[len(rows) // 2 :]
    quarters = second[: len(second) // 2], second[len(second) // 2 :]
    hundreds = (quarters[1][0]["iteration"] - quarters[0][0]["iteration"]) / 100
    middles = [[median_high(values) for values in zip(*(row[key] for row in q), strict=True)] for q in quarters]
    return [(after - before) / hundreds for before, after in zip(*middles, strict=True)]


def steady_growth(rows: list[dict], key: str) -> list[float]:
    """Return the median growth of each process from row to row in the second half, per 100 iterations.

    A leak grows in every row; that the heap takes a step now and then does not show here.
    """
    second = rows[len(rows) // 2 :]
    hundreds = (second[1]["iteration"] - second[0]["iteration"]) / 100
    pairs = list(itertools.pairwise(second))
    return [median(b[key][i] - a[key][i] for a, b in pairs) / hundreds for i in range(len(second[0][key]))]


if __name__ == "__main__":
    if VARIABLE in os.environ:
        from tests.faults import soak as module

        train_net.run(module.train_main, sys.argv[1:])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--iterations", type=int, default=2000)
        with tempfile.TemporaryDirectory() as scratch:
            found = soak(parser.parse_args().iterations, Path(scratch))
        for row in found[:: max(1, len(found) // 20)]:
            print(row)
        print("growth per 100 iterations in the second half, main process and workers:")
        print("kB:", growth(found, "kb"), "files:", growth(found, "files"))
