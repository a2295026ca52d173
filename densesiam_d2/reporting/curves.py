"""Read the numbers that a run has logged, and draw them as curves."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "draw_scores", "read_metrics"]


def read_metrics(output: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return iterations and values of each number in a run's ``metrics.json``.

    Args:
        output: OUTPUT_DIR of the run.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for line in (output / "metrics.json").read_text().splitlines():
        values = json.loads(line)
        iteration = values.pop("iteration", None)
        if iteration is None:
            continue
        for name, value in values.items():
            points.setdefault(name, []).append((iteration + 1, value))
    return {name: tuple(np.array(p, dtype=float).T) for name, p in points.items()}


def draw_curves(panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Draw curves over iterations, in panels side by side.

    Args:
        panels: title of the panel -> name of the curve -> iterations and values.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.9), dpi=110, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, (iterations, values) in curves.items():
            axis.plot(iterations, values, label=name, marker="o", markersize=2.5)
        axis.set(title=title, xlabel="iteration")
        _style(axis, legend=len(curves) > 1)
    return _render(figure)


def draw_scores(
    lines: Mapping[str, Sequence[tuple[float, float, float | None]]],
    *,
    x: str,
    y: str,
    ticks: Mapping[float, str] | None = None,
) -> np.ndarray:
    """Draw a line of mean scores for each name, with bars of one standard deviation up and down.

    Args:
        lines: name -> (x, mean, standard deviation or None), in any order.
        x, y: names of the axes.
        ticks: x -> text below it; the axis is then logarithmic.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.4), dpi=110)
    for i, (name, points) in enumerate(lines.items()):
        at, means, stds = np.array([(a, m, s or 0.0) for a, m, s in sorted(points)]).reshape(-1, 3).T
        axis.errorbar(at, means, stds, label=name, marker="os^Dv"[i % 5], markersize=5, capsize=3, elinewidth=1)
    axis.set(xlabel=x, ylabel=y)
    if ticks:
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(list(ticks), list(ticks.values()))
    _style(axis, legend=True)
    return _render(figure)


def _style(axis: plt.Axes, *, legend: bool) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=8)


def _render(figure: plt.Figure) -> np.ndarray:
    """Close a figure and return it as (H, W, 3) uint8 RGB."""
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return np.array(Image.open(buffer).convert("RGB"))
