"""Read the numbers that a run has logged, and draw them as curves."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from densesiam_d2.reporting.text import plain
from densesiam_d2.text_lines import read_json_lines

__all__ = ["Curve", "Panel", "draw_panel", "draw_scores", "read_metrics"]

Curve = tuple[np.ndarray, np.ndarray]  # iterations and values


def read_metrics(output: Path, problems: list[str] | None = None) -> dict[str, Curve]:
    """Return the curve of each number in a run's ``metrics.json``; {} if there is no such file.

    The file may be incomplete, because the run is still writing. Of an iteration that occurs twice, as after a resume,
    the later value counts.

    Args:
        output: OUTPUT_DIR of the run.
        problems: gets one text for each line that is no object, and for each value that is no number.
    """
    points: dict[str, dict[int, float]] = {}
    for values in read_json_lines(output / "metrics.json", problems):
        iteration = values.pop("iteration", None)
        for name, value in values.items():
            try:
                point = int(iteration) + 1, np.nan if value is None else float(value)
            except (TypeError, ValueError, OverflowError):
                if problems is not None:
                    problems.append(f"iteration {str(iteration)[:20]} has {name} {str(value)[:20]}")
            else:
                points.setdefault(name, {})[point[0]] = point[1]
    return {name: tuple(np.array(sorted(p.items()), dtype=float).T) for name, p in points.items()}


@dataclass(frozen=True)
class Panel:
    """Curves that share two axes.

    Attributes:
        title: text above.
        curves: name -> curve; with several, a legend has the names.
        unit: text at the vertical axis.
        healthy: lowest and highest value that are not a sign of trouble; None where there is no limit.
        target: a value to compare with, drawn as a dashed line; the axis then begins at 0.
    """

    title: str
    curves: Mapping[str, Curve]
    unit: str = ""
    healthy: tuple[float | None, float | None] = (None, None)
    target: float | None = None


def draw_panel(panel: Panel) -> np.ndarray:
    """Draw curves over iterations; values that are not healthy lie on red ground, healthy ones on green.

    Returns:
        (520, 800, 3) uint8 RGB.
    """
    figure = Figure(figsize=(5, 3.25), dpi=160, layout="constrained")
    axis = figure.add_subplot()
    for name, (iterations, values) in panel.curves.items():
        axis.plot(iterations, values, label=plain(name), marker="o" if len(values) < 60 else None, markersize=2.5)
    if panel.target is not None:
        axis.axhline(panel.target, color="#333333", linestyle="--", linewidth=1)
        axis.set_ylim(bottom=0)
    _shade(axis, panel.healthy)
    axis.set(xlabel="iteration", ylabel=panel.unit)
    axis.set_title(plain(panel.title), fontsize=11)
    if len(panel.curves) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
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
        ticks: x -> text below it; the axis is then logarithmic, unless an x is 0 or less.
    """
    figure = Figure(figsize=(7.5, 4.4), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    drawn = []
    for i, (name, points) in enumerate(lines.items()):
        at, means, stds = np.array([(a, m, s or 0.0) for a, m, s in sorted(points)]).reshape(-1, 3).T
        style = {"marker": "os^DvP*"[i % 7], "markersize": 5, "capsize": 3, "elinewidth": 1}
        drawn.append(axis.errorbar(at, means, stds, label=plain(name), **style))
    axis.set(xlabel=plain(x), ylabel=plain(y))
    if ticks:
        if min(ticks) > 0:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(list(ticks), [plain(text) for text in ticks.values()])
    if any(lines):  # a single line may have no name
        axis.legend(drawn, [plain(name) for name in lines], frameon=False, fontsize=8)
    return _render(figure)


def _shade(axis, healthy: tuple[float | None, float | None]) -> None:
    """Colour the ground, and widen the axis so that each limit can be seen."""
    limits = [limit for limit in healthy if limit is not None]
    if not limits:
        return
    bottom, top = axis.get_ylim()
    margin = 0.1 * max(top - bottom, *map(abs, limits))
    bottom, top = min(bottom, *(limit - margin for limit in limits)), max(top, *(limit + margin for limit in limits))
    low, high = healthy
    axis.axhspan(bottom if low is None else low, top if high is None else high, color="#2e9e5b", alpha=0.10, lw=0)
    if low is not None:
        axis.axhspan(bottom, low, color="#d33c3c", alpha=0.15, lw=0)
    if high is not None:
        axis.axhspan(high, top, color="#d33c3c", alpha=0.15, lw=0)
    axis.set_ylim(bottom, top)


def _render(figure: Figure) -> np.ndarray:
    """Return a figure as (H, W, 3) uint8 RGB."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return np.array(Image.open(buffer).convert("RGB"))
