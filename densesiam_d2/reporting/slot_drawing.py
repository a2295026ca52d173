"""Draw the images that show each slot of SlotCon best. All images are (H, W, 3) uint8 RGB."""

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["draw_slots", "mark_region"]

SIDE = 128  # of each image, in pixels
MARGIN = 56  # left of the images, for the number of the slot
_GAP = 4
_COLOR = (255, 40, 40)


def mark_region(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Dim an image outside a region and outline the region.

    Args:
        image: (H, W, 3) uint8 RGB.
        region: (H, W) bool.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    marked = np.where(region[..., None], image, (image * 0.3 + 100).astype(np.uint8))
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(marked), outlines, -1, _COLOR, 2)


def draw_slots(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
    """Draw one row per slot: its name, then square pictures.

    Args:
        rows: name and pictures of each slot; rows may differ in length.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    step, most = SIDE + _GAP, max(len(pictures) for _, pictures in rows)
    canvas = np.full((_GAP + step * len(rows), MARGIN + step * most, 3), 255, np.uint8)
    for i, (name, pictures) in enumerate(rows):
        top = _GAP + step * i
        text = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": 0.5, "color": (30, 30, 30), "lineType": cv2.LINE_AA}
        cv2.putText(canvas, name, (8, top + SIDE // 2), **text)
        for j, picture in enumerate(pictures):
            left = MARGIN + step * j
            canvas[top : top + SIDE, left : left + SIDE] = cv2.resize(
                picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA
            )
    return canvas
