"""Small pictures of some evaluated images, kept for a contact sheet."""

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Example"]

_HEIGHT = 128  # pixels


@dataclass
class Example:
    """One evaluated image, 128 pixels high.

    Attributes:
        file_name: its file.
        image: (h, w, 3) uint8 RGB.
        target: (h, w) class ids, or the dataset's ignore_label.
        prediction: (h, w) predicted ids, of classes or clusters.
    """

    file_name: str
    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray

    @classmethod
    def of(cls, file_name: str, image: np.ndarray, target: np.ndarray, prediction: np.ndarray) -> "Example":
        """Make an example of arrays of any size; all are scaled to the aspect ratio of the target."""
        size = (_HEIGHT, max(1, round(_HEIGHT * target.shape[1] / target.shape[0])))
        small = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_AREA)
        return cls(file_name, small, _nearest(target, size), _nearest(prediction, size))


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return ids at another size, by the nearest pixel."""
    rows, columns = ((np.arange(new) + 0.5) * old // new for new, old in zip(size, ids.shape, strict=True))
    return ids[np.ix_(rows.astype(int), columns.astype(int))]
