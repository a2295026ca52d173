"""What the guards cost: a step of this project's trainer beside a stock one, turn by turn in one process, in CPU time.

python -m tests.faults.overhead

Both train the same model on the same batches. The stock side is detectron2's SimpleTrainer with its timer and schedule
and the one metric of SimSiam; ours adds dropping of steps that are not finite, exact resume, watchdog, signals,
checkpoint hook (without a save) and the watch over collapse. Loading is compared likewise: detectron2's loader, and
ours with seeds, substitution and quarantine.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.utils.events import EventStorage

from densesiam_d2.data import order
from densesiam_d2.data.loader import build_two_view_train_loader
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper, collate_views
from densesiam_d2.engine import Trainer, load_config
from densesiam_d2.modeling.meta_arch import siamese
from tests.faults.runs import ROOT, write_images

BLOCK = 20  # steps: one period of the metrics


class Guarded(Trainer):
    """Our trainer on batches that are made once."""

    @classmethod
    def build_train_loader(cls, cfg):
        loader = build_two_view_train_loader(cfg)
        first = list(itertools.islice(loader, 4))
        loader._load = lambda: itertools.cycle(first)
        loader.__class__ = type("Cycled", (type(loader),), {"__iter__": lambda self: self._load()})
        return loader


class Stock(Guarded):
    """The same without guards."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._trainer = SimpleTrainer(self._trainer.model, self._trainer.data_loader, self._trainer.optimizer)
        self._hooks = [h for h in self._hooks if isinstance(h, hooks.IterationTimer | hooks.LRScheduler)]

    def after_step(self):
        DefaultTrainer.after_step(self)


def _only_std(z):
    z = torch.nn.functional.normalize(z.detach().float(), dim=1).transpose(0, 1).flatten(1)
    return {"std": z.std(dim=1).mean() * z.shape[0] ** 0.5}


def compare_steps(cfg, blocks: int) -> list[float]:
    """Return the ratios of our time to the stock time, step by step in turn, one for each block."""
    sides = [(Stock(cfg), EventStorage(), _only_std), (Guarded(cfg), EventStorage(), siamese.embedding_spread)]
    times = ([], [])
    for trainer, storage, _ in sides:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 10**6
        with storage:
            trainer.before_train()
    for iteration in range((blocks + 1) * BLOCK):
        for (trainer, storage, spread), found in zip(sides, times, strict=True):
            siamese.embedding_spread = spread
            start = time.process_time()
            with storage:
                trainer.iter = iteration
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
            found.append(time.process_time() - start)
    for trainer, storage, _ in sides:
        with storage:
            trainer.iter = 0
            trainer.after_train()
    return _ratios(*times)


def compare_loaders(cfg, blocks: int) -> list[float]:
    """Return the same for making batches as a worker does; the images are drawn anew on each side."""
    order.get_worker_info = lambda: True  # a worker need not keep the states of its generators
    ours = build_two_view_train_loader(cfg)
    stock = build_detection_train_loader(
        ours.dataset.records,
        mapper=TwoViewDatasetMapper(cfg),
        sampler=TrainingSampler(len(ours.dataset.records)),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        collate_fn=collate_views,
    )
    sides, times = (iter(stock), iter(ours)), ([], [])
    for _ in range((blocks + 1) * BLOCK):
        for side, found in zip(sides, times, strict=True):
            start = time.process_time()
            next(side)
            found.append(time.process_time() - start)
    return _ratios(*times)


def _ratios(stock: list[float], ours: list[float]) -> list[float]:
    """Return the ratio of each block of steps but the first, which warms up."""
    starts = range(BLOCK, len(stock), BLOCK)
    return [sum(ours[start : start + BLOCK]) / sum(stock[start : start + BLOCK]) for start in starts]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(ROOT / "configs/pretrain_R18.yaml"))
    parser.add_argument("--images", help="folder; default: drawn scenes of 256 pixels")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--view-size", type=int, default=160)
    parser.add_argument("--only", choices=["step", "loader"])
    parser.add_argument("options", nargs="*", help="KEY VALUE of the config")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = args.images or write_images(Path(folder) / "scenes", num=64, size=256)
        words = ["DATASETS.TRAIN", f"('folder:{images}',)", "OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 0]
        words += ["SOLVER.IMS_PER_BATCH", args.batch, "INPUT.SSL.VIEW_SIZE", args.view_size, "SEED", 1, *args.options]
        cfg = load_config(args.config_file, words)
        for name, compare in (("step", compare_steps), ("loader", compare_loaders)):
            if args.only not in (None, name):
                continue
            ratios = sorted(compare(cfg, args.blocks))
            print(f"{name}: ours/stock min {ratios[0]:.3f}, median {median(ratios):.3f}, max {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
