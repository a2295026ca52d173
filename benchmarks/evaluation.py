"""From logits to a confusion matrix, and from files to coarse labels, beside bare kernels and the released code."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from torch.nn import functional as F

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.peers.released_evaluation import ReleasedEvaluator, released_label_map
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.sem_seg import read_labels
from densesiam_d2.layers import resized_labels

__all__ = ["run"]

NAME = "densesiam_d2_benchmark"


def run(options: Options) -> Iterator[list[Row]]:
    """Measure 27 classes (80 to 320 pixels) and 500 clusters (120 x 160 to 480 x 640), and the label mapping."""
    torch.set_num_threads(2)
    yield _process(options, "27 classes, 320 x 320", 27, (80, 80), (320, 320))
    large = ((120, 160), (480, 640)) if not options.quick else ((30, 40), (120, 160))
    yield _process(options, f"500 clusters, {large[1][0]} x {large[1][1]}", 500, *large)
    yield _label_map(options)


@torch.no_grad()
def _process(options: Options, name: str, clusters: int, small: tuple, size: tuple) -> list[Row]:
    draw = np.random.default_rng(0)
    count = options.size(8 if clusters < 100 else 2, 1)
    maps = [draw.integers(0, 28, (size[0] // 20, size[1] // 20)).repeat(20, 0).repeat(20, 1) for _ in range(count)]
    targets = [torch.from_numpy(np.where(m == 27, 255, m).astype(np.uint8)) for m in maps]
    signed = [np.where(m == 27, -1, m) for m in maps]
    logits = torch.randn(count, clusters, *small, generator=torch.Generator().manual_seed(0))
    MetadataCatalog.get(NAME).set(stuff_classes=[str(i) for i in range(27)], ignore_label=255)
    try:
        ours = ClusterSemSegEvaluator(NAME)
    finally:
        MetadataCatalog.remove(NAME)
    released = ReleasedEvaluator(27, clusters)

    def process() -> None:
        for z, target in zip(logits, targets, strict=True):
            labels = resized_labels(z, size, size, size)
            ours.process([{"sem_seg_target": target}], [{"sem_seg_labels": labels, "num_classes": clusters}])

    variants = {
        "ours": process,
        "bare": lambda: [_bare(z, target, size) for z, target in zip(logits, targets, strict=True)],
        "released": lambda: released.process(logits, signed),
    }
    times = measure(variants, options.repeats)
    less = {"higher_is_better": False}
    different = np.abs(ours._matrix - released.histogram).sum() / released.histogram.sum() / 2
    return [
        Row.of(f"evaluator, {name}", "ours / bare kernels", ratios(times, "ours", "bare"), goal=1.25, **less),
        Row.of(f"evaluator, {name}", "share of pixels counted differently", [float(different)], goal=0.0, **less),
        Row.of(f"evaluator, {name}", "released / ours", ratios(times, "released", "ours")),
        Row.of(f"evaluator, {name}", "ours, ms per image", [1000 * t / count for t in times["ours"]], **less),
    ]


def _bare(z: torch.Tensor, target: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize, take the best and count: the library calls alone, of 8 MB at a time, which a cache holds."""
    z = z[None].contiguous(memory_format=torch.channels_last)
    step = max(1, (8 << 20) // (4 * z.shape[1] * size[1]) * z.shape[2] // size[0])  # rows of the small map
    labels = [
        F.interpolate(part, (part.shape[2] * size[0] // z.shape[2], size[1]), mode="bilinear", align_corners=False)[0]
        .permute(1, 2, 0)
        .numpy()
        .argmax(axis=-1)
        for part in z.split(step, dim=2)
    ]
    pair = [target.numpy().reshape(1, -1), np.concatenate(labels).reshape(1, -1)]
    if z.shape[1] <= 256:
        pair[1] = pair[1].astype(np.uint8)
        return cv2.calcHist(pair, [0, 1], None, [27, z.shape[1]], [0, 27, 0, z.shape[1]])
    return np.bincount((pair[0].astype(np.int64) * z.shape[1] + pair[1])[0], minlength=256 * z.shape[1])


def _label_map(options: Options) -> list[Row]:
    """Read a PNG file of 182 fine classes as 27 coarse ones, 100 times; the released code once."""
    side = options.size(640, 64)
    fine = np.random.default_rng(0).integers(0, 182, (side // 8, side // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    table = np.arange(256, dtype=np.uint8) % 27
    lookup = {i: int(v) for i, v in enumerate(table)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fine.png"
        Image.fromarray(fine).save(path)
        variants = {
            "ours": lambda: [read_labels(path, table) for _ in range(100)],
            "bare": lambda: [_bare_labels(path, table) for _ in range(100)],
            "released": lambda: released_label_map(np.asarray(Image.open(path)), lookup),
        }
        assert np.array_equal(read_labels(path, table), _bare_labels(path, table))
        assert np.array_equal(read_labels(path, table), variants["released"]())
        times = measure(variants, options.repeats)
    floor = ratios(times, "ours", "bare")
    return [
        Row.of("label mapping", "ours / bare decoding and table", floor, goal=1.25, higher_is_better=False),
        Row.of("label mapping", "released / ours", [100 * ratio for ratio in ratios(times, "released", "ours")]),
    ]


def _bare_labels(path: Path, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE), table)
