"""Labels of feature cells: how often each class occurs among the pixels of a cell, and the most frequent one.

Shape shorthand: H,W pixels of the network's input, s the stride of the features, K classes.
"""

import cv2
import numpy as np

__all__ = ["IGNORED", "cell_counts", "cell_modes"]

IGNORED = -1  # label of a cell in which ignored pixels are the most frequent


def cell_counts(labels: np.ndarray, size: tuple[int, int], stride: int, num_classes: int) -> np.ndarray:
    """Count the pixels of each class in each cell.

    Args:
        labels: (H0, W0) labels of an image in their own size; values outside [0, K) are ignored pixels. They are
            resized to ``size`` by nearest neighbour.
        size: (H, W) of the network's input, multiples of ``stride``.
        stride: s, the side of a cell.
        num_classes: K.

    Returns:
        (H / s, W / s, K + 1) int64; the last number counts the ignored pixels.
    """
    height, width = size
    assert height % stride == width % stride == 0, (size, stride)
    labels = cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    labels = np.where((labels >= 0) & (labels < num_classes), labels, num_classes).astype(np.int64)
    rows, columns = height // stride, width // stride
    cell = np.arange(height)[:, None] // stride * columns + np.arange(width) // stride  # (H, W) index of the cell
    index = cell * (num_classes + 1) + labels
    counts = np.bincount(index.reshape(-1), minlength=rows * columns * (num_classes + 1))
    return counts.reshape(rows, columns, num_classes + 1)


def cell_modes(labels: np.ndarray, size: tuple[int, int], stride: int, num_classes: int) -> np.ndarray:
    """Return the most frequent label in each cell.

    Args:
        labels, size, stride, num_classes: see :func:`cell_counts`.

    Returns:
        (H / s, W / s) int64: class, or :data:`IGNORED` where ignored pixels are the most frequent. If several are
        equally frequent, the lowest class is taken.
    """
    modes = cell_counts(labels, size, stride, num_classes).argmax(axis=-1)  # the first of several maxima
    return np.where(modes == num_classes, IGNORED, modes)
