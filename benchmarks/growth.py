"""Time and memory against the numbers of images, clusters and classes, the size of views and the number of processes.

Writes one plot for each to docs/growth_*.png. On the CPU, two threads. Steps are those of DenseSiam's pretraining with
ResNet-18.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import processes, scale
from benchmarks.harness import Options, Row, measure, peak_mib
from benchmarks.models import R18, build, random_batch, train_step
from densesiam_d2.evaluation.confusion import confusion_matrix
from densesiam_d2.evaluation.matching import match_clusters
from densesiam_d2.layers import resized_labels

__all__ = ["expected_efficiency", "run"]

CONFIG = "configs/pretrain.yaml"
DOCS = Path("docs")
GPUS = [1, 8, 64]
Series = dict[str, list[list[float]]]  # name -> for each count, the values of all rounds


def run(options: Options) -> Iterator[list[Row]]:
    """Measure all five, and draw them unless ``options.quick``."""
    torch.set_num_threads(2)
    for draw in (_images, _clusters, _classes, _view_size, _processes):
        yield draw(options)


def _images(options: Options) -> list[Row]:
    counts = [10**power for power in range(3, options.size(9, 5))]
    found = [scale.of_count(options, count) for count in counts]
    start_up, heap = [f["start_up"] for f in found], [[x / 2**20 for x in f["heap"]] for f in found]
    record = [[1e6 * x for x in f["record"]] for f in found]
    series = {
        "seconds to the first batch's names": start_up,
        "microseconds for order and name of an image": record,
        "heap in MiB": heap,
    }
    return _rows_and_plot(options, "images", "images in the index", counts, series)


def _clusters(options: Options) -> list[Row]:
    return _evaluation(options, "clusters", "clusters", lambda count: 27)


def _classes(options: Options) -> list[Row]:
    return _evaluation(options, "classes", "classes and clusters", lambda count: count)


def _evaluation(options: Options, name: str, axis: str, classes: Callable[[int], int]) -> list[Row]:
    """Measure the evaluation of one image of 480 x 640 pixels from logits of 120 x 160 cells, and the matching.

    Args:
        options: what the command line asks for.
        name, axis: of the plot.
        classes: returns the number of classes for a number of clusters.
    """
    counts, (h, w) = options.size([27, 128, 512, 2048], [27, 128]), options.size((120, 160), (30, 40))
    size, draw = (4 * h, 4 * w), np.random.default_rng(0)
    series = {"milliseconds per image": [], "milliseconds to match": [], "peak MiB per image": []}
    for count in counts:
        z, known = torch.randn(count, h, w, generator=torch.Generator().manual_seed(0)), classes(count)
        target = draw.integers(0, known, (size[0] // 20, size[1] // 20)).repeat(20, 0).repeat(20, 1)
        target = target.astype(np.uint8 if known <= 256 else np.int32)

        def image(z=z, target=target, known=known, count=count) -> np.ndarray:
            with torch.no_grad():
                labels = resized_labels(z, size, size, size).numpy()
            return confusion_matrix(target, labels, known, count, -1, name="drawn")

        matrix = image()
        match = partial(match_clusters, matrix, "hungarian")
        times = measure({"image": image, "match": match}, options.repeats)
        series["milliseconds per image"].append([1000 * t for t in times["image"]])
        series["milliseconds to match"].append([1000 * t for t in times["match"]])
        series["peak MiB per image"].append([peak_mib(image)])
    return _rows_and_plot(options, name, axis, counts, series)


def _view_size(options: Options) -> list[Row]:
    sides = options.size([96, 128, 160, 224, 320], [64, 96])
    model, optimizer = build(CONFIG, *R18)
    series = {"seconds per pair": [], "peak MiB per pair": []}
    for side in sides:
        step = train_step(model, optimizer, random_batch(2, side))
        series["seconds per pair"].append([t / 2 for t in measure({"step": step}, options.repeats)["step"]])
        series["peak MiB per pair"].append([peak_mib(step) / 2])
    return _rows_and_plot(options, "view_size", "side of a view in pixels", sides, series)


def _processes(options: Options) -> list[Row]:
    """Measure two processes on the CPU, and calculate GPUs."""
    shared, synced, _, one, two = next(processes.run(options))
    series = {"rate of a process, share of one alone": [[1.0], [1 / shared.median]]}
    series["the same with synced batch norm"] = [[1.0], [1 / shared.median / synced.median]]
    series["MiB of a process in training"] = [[one.median], [two.median]]
    rows = _rows_and_plot(options, "processes", "processes on the CPU", [1, 2], series)
    paper = {"rate of a GPU, share of one alone": [[expected_efficiency(count)] for count in GPUS]}
    if not options.quick:
        _plot("gpus", "GPUs, calculated and not measured", GPUS, paper)
    return rows


def expected_efficiency(gpus: int) -> float:
    """Return the expected rate of each of some GPUs, as a share of one GPU's.

    Gradients travel behind the backward pass. What adds to a step is the latency of SyncBN: two collectives (forward
    and backward) per norm and view, of 20 us within a node of eight GPUs and 35 us between nodes.
    """
    step, norms = 128 / 2600, 61  # seconds of 128 pairs at 2,600 pairs/s; a ResNet-50 with DenseSiam's heads
    latency = 0 if gpus == 1 else 20e-6 if gpus <= 8 else 35e-6
    return step / (step + norms * 2 * 2 * latency)


def _rows_and_plot(options: Options, name: str, axis: str, counts: list[int], series: Series) -> list[Row]:
    """Return a row for each point of each series; draw them unless ``options.quick``."""
    if not options.quick:
        _plot(name, axis, counts, series)
    return [
        Row.of(f"growth, {count:,} {axis}", label, values, higher_is_better=False)
        for label, points in series.items()
        for count, values in zip(counts, points, strict=True)
    ]


def _plot(name: str, axis: str, counts: list[int], series: Series) -> None:
    """Draw a panel for each series, the medians as a line and the range of the rounds as bars, to docs/growth_*.png."""
    figure = Figure(figsize=(3.4 * len(series), 2.8), layout="constrained")
    for panel, (label, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        middle = [median(values) for values in points]
        below = [m - min(values) for m, values in zip(middle, points, strict=True)]
        above = [max(values) - m for m, values in zip(middle, points, strict=True)]
        panel.errorbar(counts, middle, [below, above], marker="o", markersize=4, capsize=3)
        panel.set(title=label, xlabel=axis, xscale="log", ylim=(0, 1.15 * max(map(max, points))))
        panel.title.set_fontsize(9)
        panel.set_xticks(counts, [f"{count:,}" if count < 10000 else f"1e{len(str(count)) - 1}" for count in counts])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.savefig(DOCS / f"growth_{name}.png", dpi=80)
