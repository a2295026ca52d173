"""Views for unsupervised segmentation from 640 x 480 files, beside the released pipeline. One thread."""

from collections.abc import Iterator

import cv2
import torch

from benchmarks.data import mapper
from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.peers.released_data import released_views
from densesiam_d2.engine import load_config

__all__ = ["run"]


def _recipe(color_first: bool):
    cfg = load_config("configs/unsup_seg/Base-UnsupSeg-R18.yaml")
    ssl = cfg.INPUT.SSL
    words = [word for key, value in ssl.items() for word in (f"INPUT.SSL.{key}", value)]
    return mapper(*words, "INPUT.SSL.COLOR_FIRST", color_first)


def run(options: Options) -> Iterator[list[Row]]:
    """Measure both orders of crops and colours."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    files = jpeg_files(options, options.size(40, 2), width=640, height=480, kilobytes=160)
    same, crop_first = _recipe(True), _recipe(False)
    variants = {
        "same order": lambda name: same({"file_name": name}),
        "crop first": lambda name: crop_first({"file_name": name}),
        "released": released_views(),
    }
    times = measure({k: lambda f=f: [f(name) for name in files] for k, f in variants.items()}, options.repeats)
    rows = []
    for name in ("same order", "crop first"):
        row = f"segmentation views, {name}"
        rows += [
            Row.of(row, "released / ours", ratios(times, "released", name)),
            Row.of(row, "ours, images/s of one core", [len(files) / t for t in times[name]]),
        ]
    yield rows
