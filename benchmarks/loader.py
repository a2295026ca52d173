"""From files to batches through worker processes, and what it costs to hand a batch over. Wall time."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import get_cfg
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.peers.augmentation import lightly_views
from benchmarks.peers.bare import bare_views
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.loader import build_two_view_train_loader
from densesiam_d2.data.two_view_mapper import collate_views

__all__ = ["run"]

WORKERS = 2


class Mapped(Dataset):
    """Items made by a function of a name."""

    def __init__(self, names: list, function):
        self.names, self.function = names, function

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        return self.function(self.names[index])


def _seconds_per_batch(loader: Iterable, batches: int) -> float:
    """Start the workers, drop the first two batches, and time the others."""
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    begin = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    seconds = time.perf_counter() - begin
    del iterator
    return seconds / batches


def _float_views(name: str) -> list[torch.Tensor]:
    return [_float_views.view] * 2


def _stored_views(name: str) -> torch.Tensor:
    return _uint8_views.views


def _uint8_views(name: str) -> dict:
    return {"views": _uint8_views.views, "view_boxes": torch.zeros(2, 4), "file_name": name}


def run(options: Options) -> Iterator[list[Row]]:
    """Measure files to batches, then batches that cost nothing to make."""
    torch.set_num_threads(1)
    names = jpeg_files(options, options.size(100, 4))
    size, batches = options.size(32, 2), options.size(16, 1)
    many = names * -(-size * (batches + 4) // len(names))
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "images.txt"
        listing.write_text("\n".join(names))
        cfg = get_cfg()
        add_densesiam_config(cfg)
        cfg.DATASETS.TRAIN = (f"list:{listing}",)
        cfg.DATALOADER.NUM_WORKERS = WORKERS
        cfg.SOLVER.IMS_PER_BATCH = size
        cfg.INPUT.FORMAT = "RGB"
        cfg.MODEL.DEVICE = "cpu"
        cfg.SEED = 0
        cfg.OUTPUT_DIR = folder
        bare = DataLoader(Mapped(many, bare_views), size, num_workers=WORKERS, shuffle=True)
        peer = DataLoader(Mapped(many, lightly_views()), size, num_workers=WORKERS, shuffle=True)
        times = measure(
            {
                "ours": lambda: _seconds_per_batch(build_two_view_train_loader(cfg), batches),
                "bare": lambda: _seconds_per_batch(bare, batches),
                "lightly": lambda: _seconds_per_batch(peer, batches),
            },
            options.repeats,
        )
    name, less = f"loader, {WORKERS} workers", {"higher_is_better": False}
    floor = "ours / a DataLoader of the bare views"
    yield [
        Row.of(name, floor, ratios(times, "ours", "bare"), goal=1.1, **less),
        Row.of(name, "lightly / ours", ratios(times, "lightly", "ours")),
        Row.of(name, "ours, images/s", [size / t for t in times["ours"]]),
    ]

    size, batches = options.size(64, 2), options.size(20, 1)
    nothing = [""] * size * (batches + 4)
    _float_views.view = torch.rand(3, 224, 224)
    views = torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)
    _uint8_views.views = views.permute(0, 3, 1, 2)
    loaders = {
        "ours": DataLoader(Mapped(nothing, _uint8_views), size, num_workers=WORKERS, collate_fn=collate_views),
        "bare": DataLoader(Mapped(nothing, _stored_views), size, num_workers=WORKERS),
        "float": DataLoader(Mapped(nothing, _float_views), size, num_workers=WORKERS),
    }
    variants = {name: lambda loader=loader: _seconds_per_batch(loader, batches) for name, loader in loaders.items()}
    times = measure(variants, options.repeats)
    name = "collating and handing over"
    yield [
        Row.of(name, "ours / stacked uint8", ratios(times, "ours", "bare"), goal=1.25, **less),
        Row.of(name, "stacked float32 / ours", ratios(times, "float", "ours")),
    ]
