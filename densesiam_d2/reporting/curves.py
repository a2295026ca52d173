"""Read the numbers that a run has logged, and draw them as curves."""

import io
import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "read_metrics"]


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
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return np.array(Image.open(buffer).convert("RGB"))
