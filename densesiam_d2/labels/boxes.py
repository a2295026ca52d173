"""Find boxes in another convention than COCO's x, y, width, height in pixels."""

import numpy as np

from densesiam_d2.labels.findings import Tally
from densesiam_d2.labels.masks import mask_bounds

__all__ = ["judge_boxes"]

SHARE = 1.01  # largest number of a box in shares of its image, with rounding
MANY = 0.2  # share of boxes outside their image; corners read as sizes give about half
ROUGH = 0.25  # least IoU of a box, clipped to its image, and that of its mask; a pixel and a square of 2 x 2 have it


def judge_boxes(annotations: list[dict], written: np.ndarray, tally: Tally) -> None:
    """Note boxes in another convention: corners (x1, y1, x2, y2), or fractions of the image size.

    With masks, the boxes are taken for corners if more than half of them agree with their mask only when read as
    corners. Without masks, if at least a fifth of the boxes reach outside their image and all boxes are valid corners.

    Args:
        annotations: annotations that passed the other checks.
        written: (N, 6), the four numbers of each box as they stand in the file, and width and height of its image.
        tally: receives "boxes-relative", "box-relative", "boxes-xyxy" and "box-mask".
    """
    if not len(written):
        return
    x, y, w, h, width, height = written.T
    relative = (written[:, :4].max(axis=1) <= SHARE) & (written[:, 4:].min(axis=1) > 2)
    for i in np.flatnonzero(relative):
        kind = "boxes-relative" if relative.all() else "box-relative"
        tally.note(kind, f"annotation {annotations[i].get('id')}: bbox {annotations[i]['bbox']}")
    if relative.all():
        return
    sizes = written[:, [5, 4]].astype(int).tolist()
    known_bounds = [mask_bounds(a.get("segmentation"), tuple(s)) for a, s in zip(annotations, sizes, strict=True)]
    bounds = np.array([b or (np.nan,) * 4 for b in known_bounds])
    as_sizes = _overlap(np.stack([x, y, x + w, y + h], 1), bounds)
    as_corners = _overlap(written[:, :4], bounds)
    kept = np.array([a["bbox"] for a in annotations], dtype=float)
    as_kept = _overlap(np.hstack([kept[:, :2], kept[:, :2] + kept[:, 2:]]), bounds)
    known = ~np.isnan(as_sizes)
    by_mask = known & (as_corners > 0.8) & (as_sizes < 0.8)
    fits_as_corners = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
    leaves = (x + w > width + 1) | (y + h > height + 1)
    if known.any():
        corners = by_mask if by_mask.sum() > 0.5 * known.sum() else np.zeros_like(known)
    else:
        corners = leaves if fits_as_corners.all() and leaves.mean() >= MANY else np.zeros_like(known)
    for i in np.flatnonzero(corners):
        tally.note("boxes-xyxy", f"annotation {annotations[i].get('id')}: bbox {written[i, :4].tolist()}")
    for i in np.flatnonzero(known & (as_kept < ROUGH) & ~corners):
        x0, y0, x1, y1 = known_bounds[i]
        mask = f"that of the mask is {[x0, y0, x1 - x0, y1 - y0]}"
        tally.note("box-mask", f"annotation {annotations[i].get('id')}: bbox {annotations[i]['bbox']}, {mask}")


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of each pair of corner boxes (N, 4), NaN where one is unknown."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=1) + 0 * low.sum(axis=1)
    areas = [np.clip(v[:, 2:] - v[:, :2], 0, None).prod(axis=1) for v in (a, b)]
    return inside / np.maximum(areas[0] + areas[1] - inside, 1e-9)
