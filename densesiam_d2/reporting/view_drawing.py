"""Drawings of an image, its two views and the points at which the views are compared."""

import itertools

import cv2
import numpy as np
import torch

from densesiam_d2.geometry import grid_points, overlap_boxes, overlap_grids

__all__ = ["MAX_GRID", "draw_views"]

MAX_GRID = 8  # points per side of the drawn grid; more would hide the picture
HEIGHT = 448  # height of each panel, in pixels
IMAGE_WIDTH = HEIGHT * 4 // 3  # width of the first panel
MARGIN = 12
TITLE = 30
VIEW_COLORS = ((255, 140, 0), (0, 150, 255))  # RGB colours of the boxes of view 1 and 2


def draw_views(image: np.ndarray | None, views: torch.Tensor, boxes: torch.Tensor, grid_size: int) -> np.ndarray:
    """Draw an image, its two views and the corresponding points side by side.

    Args:
        image: (H, W, 3) uint8 RGB, the original; None draws the views alone.
        views: (2, 3, S, S) uint8 RGB.
        boxes: (2, 4) view boxes, see :mod:`densesiam_d2.geometry`.
        grid_size: side of the grid of points in the overlap.

    Returns:
        (height, width, 3) uint8 RGB picture, of the same size for every image.
    """
    boxes1, boxes2 = boxes[:1].float(), boxes[1:].float()
    grid1, grid2, valid = overlap_grids(boxes1, boxes2, grid_size)
    overlap, fraction = overlap_boxes(boxes1, boxes2)
    if boxes1[0, 0] > boxes1[0, 2]:  # view 1 is flipped, and the points have its orientation
        overlap = overlap[:, [2, 1, 0, 3]]

    shows = f"view 1 shows {fraction[0]:.0%} of view 2"
    panels = [cv2.resize(view.permute(1, 2, 0).numpy(), (HEIGHT, HEIGHT)) for view in views]
    titles = [f"view {i + 1}{', flipped' if box[0] > box[2] else ''}" for i, box in enumerate(boxes)]
    for panel, color in zip(panels, VIEW_COLORS, strict=True):
        cv2.rectangle(panel, (0, 0), (HEIGHT - 1, HEIGHT - 1), color, 3)
    points = [(grid1[0] + 1) / 2 * HEIGHT, (grid2[0] + 1) / 2 * HEIGHT]
    if image is None:
        titles[0] += f"; {shows}"
    else:
        scale = min(HEIGHT / image.shape[0], IMAGE_WIDTH / image.shape[1])
        original = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        panels.insert(0, _draw_boxes(original, (boxes * scale).numpy(), (overlap[0] * scale).numpy()))
        titles.insert(0, f"image: {shows}")
        points.insert(0, grid_points(overlap, grid_size)[0] * scale)
    if valid[0]:
        for panel, own in zip(panels, points, strict=True):
            _draw_points(panel, own.numpy())
    if image is not None:
        panels[0] = _center(panels[0], HEIGHT, IMAGE_WIDTH)
    return _join([_add_title(panel, title) for panel, title in zip(panels, titles, strict=True)])


def _draw_boxes(image: np.ndarray, boxes: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Dim the image outside the overlap, where no points lie, and outline the views; boxes are in picture pixels."""
    dimmed = (image * 0.45 + 110).astype(np.uint8)
    x0, x1 = sorted(np.rint(overlap[[0, 2]]).astype(int))
    y0, y1 = np.rint(overlap[[1, 3]]).astype(int)
    dimmed[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    for box, color in zip(boxes, VIEW_COLORS, strict=True):
        x0, x1 = sorted(np.clip(np.rint(box[[0, 2]]), 1, image.shape[1] - 2).astype(int).tolist())
        y0, y1 = np.clip(np.rint(box[[1, 3]]), 1, image.shape[0] - 2).astype(int).tolist()
        cv2.rectangle(dimmed, (x0, y0), (x1, y1), color, 3)
    return dimmed


def _draw_points(panel: np.ndarray, points: np.ndarray) -> None:
    """Draw (S, S, 2) points, coloured by row and column; every second point of every second row has its number."""
    size = len(points)
    shift = 3  # fixed-point bits, because points lie between pixel centres
    for row, column in itertools.product(range(size), range(size)):
        color = _point_color(row, column, size)
        # In OpenCV the centre of the first pixel is (0, 0), in our coordinates it is (0.5, 0.5).
        x, y = np.rint((points[row, column] - 0.5) * 2**shift).astype(int).tolist()
        cv2.circle(panel, (x, y), 6 << shift, (255, 255, 255), -1, cv2.LINE_AA, shift)
        cv2.circle(panel, (x, y), 4 << shift, color, -1, cv2.LINE_AA, shift)
    for row, column in itertools.product(range(0, size, 2), range(0, size, 2)):
        x, y = points[row, column]
        right = x < panel.shape[1] - 26  # otherwise the number would be cut off at the edge
        _write(panel, str(row * size + column), round(x) + (6 if right else -24), max(round(y) - 5, 11), 0.4)


def _point_color(row: int, column: int, size: int) -> tuple[int, int, int]:
    """Return an RGB colour: the hue changes with the column, and the brightness falls with the row."""
    hue = round(255 * column / max(size, 2) * 0.85)
    value = round(255 - 130 * row / max(size - 1, 1))
    pixel = np.array([[[hue, 230, value]]], np.uint8)
    return tuple(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB_FULL)[0, 0].tolist())


def _write(picture: np.ndarray, text: str, x: int, y: int, scale: float) -> None:
    """Write white text with a dark rim, which is legible on any background."""
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, color, width, cv2.LINE_AA)


def _add_title(panel: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((TITLE, panel.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (2, TITLE - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([bar, panel])


def _join(panels: list[np.ndarray]) -> np.ndarray:
    gap = np.full((panels[0].shape[0], MARGIN, 3), 255, np.uint8)
    row = np.hstack([part for panel in panels for part in (gap, panel)] + [gap])
    return np.pad(row, ((0, MARGIN), (0, 0), (0, 0)), constant_values=255)


def _center(panel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put a panel into the middle of a larger white one."""
    top, left = (height - panel.shape[0]) // 2, (width - panel.shape[1]) // 2
    whole = np.full((height, width, 3), 255, np.uint8)
    whole[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return whole
