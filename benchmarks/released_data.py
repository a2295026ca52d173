"""Views for unsupervised segmentation from 640 x 480 files, beside bare calls and the released pipeline. One thread."""

from collections.abc import Iterator

import cv2
import torch

from benchmarks.data import mapper
from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.peers.bare import bare_segmentation_views
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
    files = jpeg_files(options, options.size(100, 2), width=640, height=480, kilobytes=160)
    variants = {"released": released_views()}
    for order, color_first in (("same order", True), ("crop first", False)):
        ours = _recipe(color_first)
        variants[order] = lambda name, ours=ours: ours({"file_name": name})
        variants[f"{order}, bare"] = bare_segmentation_views(color_first)
    times = measure({k: lambda f=f: [f(name) for name in files] for k, f in variants.items()}, options.repeats)
    rows = []
    for name in ("same order", "crop first"):
        row = f"segmentation views, {name}"
        floor = ratios(times, name, f"{name}, bare")
        rows += [
            Row.of(row, "ours / the same calls in one bare function", floor, goal=1.03, higher_is_better=False),
            Row.of(row, "released / ours", ratios(times, "released", name)),
            Row.of(row, "ours, images/s of one core", [len(files) / t for t in times[name]]),
        ]
    yield rows
