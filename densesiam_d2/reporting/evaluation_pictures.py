"""Pictures of an evaluated segmentation: its confusion matrix, and a contact sheet. Images are (H, W, 3) uint8 RGB.

Shape shorthand: K classes, P predicted ids (classes or clusters).
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densesiam_d2.evaluation.examples import Example
from densesiam_d2.reporting.label_colors import colorize, palette
from densesiam_d2.reporting.pictures import draw_legend, tile
from densesiam_d2.reporting.text import plain, text_width

__all__ = ["draw_confusion", "draw_contact_sheet", "write_evaluation_pictures"]

NO_CLASS_COLOR = (128, 128, 128)
_LABELLED = 60  # with more columns, one label stands for all clusters of a class


def draw_confusion(matrix: np.ndarray, names: Sequence[str], classes: Sequence[int | None] | None = None) -> np.ndarray:
    """Draw a confusion matrix: each row is divided by its sum, so that it shows where the pixels of a class go.

    Args:
        matrix: (K, P) counts, rows are classes.
        names: K names.
        classes: (P,) the class of each cluster, None for clusters without one; the columns are sorted by it, and those
            without a class come last. If it is None itself, the columns are the classes.
    """
    num_classes, num_columns = matrix.shape
    if classes is None:
        order, labels = range(num_columns), list(names)
    else:
        place = [num_classes if c is None else c for c in classes]
        order = sorted(range(num_columns), key=lambda i: (place[i], -matrix[:, i].sum()))
        labels = [f"{'no class' if classes[i] is None else names[classes[i]]} ({i})" for i in order]
    ticks = range(num_columns)
    if num_columns > _LABELLED and classes is not None:
        sorted_places = np.array([place[i] for i in order])
        groups = np.unique(sorted_places)
        ticks = [np.flatnonzero(sorted_places == group).mean() for group in groups]
        labels = [
            f"{[*names, 'no class'][group]} ({np.count_nonzero(sorted_places == group)} clusters)" for group in groups
        ]
    share = matrix[:, order] / np.maximum(matrix.sum(axis=1, keepdims=True), 1)

    width = 2.8 + 0.3 * min(max(num_columns, 6), _LABELLED)
    figure = Figure(figsize=(width, 2.4 + 0.3 * max(num_classes, 6)), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    drawn = axis.imshow(100 * share, vmin=0, vmax=100, cmap="Blues", aspect="auto", interpolation="nearest")
    axis.set_xticks(list(ticks), [plain(label) for label in labels], rotation=90, fontsize=8)
    axis.set_yticks(range(num_classes), [plain(name) for name in names], fontsize=8)
    axis.set_xlabel("predicted class" if classes is None else "class of the cluster (number of the cluster)")
    axis.set_ylabel("class")
    if num_columns <= 30:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                color = "white" if value > 0.6 else "black"
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(drawn, ax=axis, label="% of the pixels of the class", shrink=0.8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_contact_sheet(
    examples: Sequence[Example],
    names: Sequence[str],
    classes: Sequence[int | None] | None = None,
    colors: np.ndarray | None = None,
) -> np.ndarray:
    """Draw images with their labels and predictions in the colours of the classes, two images per row.

    Pixels that do not count are black in the labels. Clusters without a class are grey.

    Args:
        examples: the images, at least one.
        names: K names.
        classes: see :func:`draw_confusion`.
        colors: (K, 3) uint8 RGB; :func:`palette` if None.
    """
    colors = palette(len(names)) if colors is None else colors
    with_grey = np.concatenate([colors, np.array([NO_CLASS_COLOR], np.uint8)])
    table = np.arange(len(names)) if classes is None else np.array([len(names) if c is None else c for c in classes])
    rows = [
        [
            example.image,
            colorize(example.target, len(names), colors),
            colorize(table[example.prediction], len(with_grey), with_grey),
        ]
        for example in examples
    ]
    height, width = (max(row[0].shape[side] for row in rows) for side in (0, 1))
    rows = [[_padded(picture, width) for picture in row] for row in rows]
    lines = [[*left, *right] for left, right in zip_longest(rows[::2], rows[1::2], fillvalue=())]
    sheet = tile(lines, ["image", "labels", "prediction"] * (len(lines[0]) // 3), height=height)
    known = [*names, "no class"] if classes is not None and None in classes else list(names)
    return np.vstack([sheet, _legend(known, with_grey, sheet.shape[1])])


def _padded(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


def _legend(names: Sequence[str], colors: np.ndarray, width: int) -> np.ndarray:
    """Draw the legend in as many rows as the width needs."""
    cell = 40 + max(map(text_width, names))
    per_row = max(1, width // cell)
    lines = [
        draw_legend(names[i : i + per_row], colors[i : i + len(names[i : i + per_row])], cell)
        for i in range(0, len(names), per_row)
    ]
    return np.vstack([_padded(line[:, :width], width) for line in lines])


def write_evaluation_pictures(
    folder: Path,
    matrix: np.ndarray,
    names: Sequence[str],
    classes: Sequence[int | None] | None,
    examples: Sequence[Example],
    colors: np.ndarray | None = None,
) -> None:
    """Write ``confusion.png`` and, with examples, ``contact_sheet.png``; see the functions above for the arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"confusion.png": draw_confusion(matrix, names, classes)}
    if examples:
        pictures["contact_sheet.png"] = draw_contact_sheet(examples, names, classes, colors)
    for name, picture in pictures.items():
        cv2.imwrite(str(folder / name), picture[..., ::-1])
