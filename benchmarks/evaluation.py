"""From logits to a confusion matrix, and from fine labels to coarse ones, beside the released code (G11, G12)."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.peers.released_evaluation import ReleasedEvaluator, released_label_map
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.sem_seg import read_labels
from densesiam_d2.layers import resized_labels

__all__ = ["run"]

NAME = "densesiam_d2_benchmark"


def run(options: Options) -> list[Row]:
    """Measure G11 at 27 classes (80 to 320 pixels) and 500 clusters (120 x 160 to 480 x 640), and G12."""
    torch.set_num_threads(2)
    with torch.no_grad():
        rows = _process(options, "27 classes, 320 x 320", 27, (80, 80), (320, 320), {"goal": 4.5, "gate": 3.5})
        large = ((120, 160), (480, 640)) if not options.quick else ((30, 40), (120, 160))
        rows += _process(options, f"500 clusters, {large[1][0]} x {large[1][1]}", 500, *large, {})
    return [*rows, _label_map(options)]


def _process(options: Options, name: str, clusters: int, small: tuple, size: tuple, limits: dict) -> list[Row]:
    draw = np.random.default_rng(0)
    count = options.size(8 if clusters < 100 else 2, 1)
    maps = [draw.integers(0, 28, (size[0] // 20, size[1] // 20)).repeat(20, 0).repeat(20, 1) for _ in range(count)]
    targets = [torch.from_numpy(np.where(m == 27, 255, m).astype(np.uint8)) for m in maps]
    signed = [np.where(m == 27, -1, m) for m in maps]
    logits = torch.randn(count, clusters, *small, generator=torch.Generator().manual_seed(0))
    MetadataCatalog.get(NAME).set(stuff_classes=[str(i) for i in range(27)], ignore_label=255)
    try:
        ours = ClusterSemSegEvaluator(NAME, distributed=False)
    finally:
        MetadataCatalog.remove(NAME)
    released = ReleasedEvaluator(27, clusters)

    def process() -> None:
        for z, target in zip(logits, targets, strict=True):
            labels = resized_labels(z, size, size, size)
            ours.process([{"sem_seg_target": target}], [{"sem_seg_labels": labels, "num_classes": clusters}])

    times = measure({"ours": process, "released": lambda: released.process(logits, signed)}, options.repeats)
    different = np.abs(ours._matrix - released.histogram).sum() / released.histogram.sum() / 2
    return [
        Row.of(f"G11 evaluator, {name}", "released / ours", ratios(times, "released", "ours"), **limits),
        Row.of(
            f"evaluator, {name}",
            "ours, ms per image",
            [1000 * t / count for t in times["ours"]],
            higher_is_better=False,
        ),
        Row.of(
            f"G11 evaluator, {name}",
            "share of pixels counted differently",
            [float(different)],
            goal=0.0,
            gate=0.0,
            higher_is_better=False,
        ),
    ]


def _label_map(options: Options) -> Row:
    side = options.size(640, 64)
    fine = np.random.default_rng(0).integers(0, 182, (side // 8, side // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    table = np.arange(256, dtype=np.uint8) % 27
    lookup = {i: int(v) for i, v in enumerate(table)}
    times = measure(
        {
            "ours": lambda: [cv2.LUT(fine, table) for _ in range(100)],  # what read_labels does
            "released": lambda: released_label_map(fine, lookup),
        },
        options.repeats,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fine.png"
        Image.fromarray(fine).save(path)
        assert np.array_equal(read_labels(path, table), released_label_map(fine, lookup))
    values = [100 * ratio for ratio in ratios(times, "released", "ours")]
    return Row.of("G12 label mapping", "released / ours", values, goal=50, gate=20)
