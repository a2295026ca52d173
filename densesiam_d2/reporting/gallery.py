"""Collect what a person needs to name clusters: for each its most typical regions, its share, and its neighbours."""

import base64
from bisect import insort
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

__all__ = ["Gallery", "Example"]

EXAMPLES = 8  # regions per cluster
MAX_EXAMPLES = 1500  # in all, so that the page stays below about 20 MB
NEAREST = 3
_SIDE = 400  # regions are searched for at this size of the long side
_HEIGHT, _MAX_WIDTH = 160, 320  # of a picture
_OUTLINE = (255, 30, 30)
_CONTEXT = 0.3  # of the region's larger side, added on each side
_ALIKE = 14.0  # mean difference of grey levels of two thumbnails, up to which they show the same scene


@dataclass(order=True)
class Example:
    """A picture of a region.

    Attributes:
        score: mean certainty of the region times the square root of its share of the image.
        image: name of the image.
        jpeg: the region, outlined, with some context.
        thumbnail: (8, 8, 3), to tell nearly equal pictures.
    """

    score: float
    image: str
    jpeg: bytes = field(compare=False)
    thumbnail: np.ndarray = field(compare=False, repr=False)

    @property
    def data_uri(self) -> str:
        """The picture as text for an HTML page."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


class Gallery:
    """The statistics and the best few pictures of each cluster; the memory does not grow with the number of images.

    Shape shorthand: K clusters, H,W pixels.

    Attributes:
        pixels: (K,) number of pixels.
        images: (K,) number of images in which a cluster occurs.
        num_images: number of all images.
        examples: for each cluster its pictures, the best last.
    """

    def __init__(self, num: int):
        """Start without images.

        Args:
            num: K.
        """
        self.pixels, self.images, self.num_images = np.zeros(num, np.int64), np.zeros(num, np.int64), 0
        self.examples: list[list[Example]] = [[] for _ in range(num)]
        self._shared = np.zeros((num, num))
        self._most = min(EXAMPLES, max(1, MAX_EXAMPLES // num))

    @property
    def shares(self) -> np.ndarray:
        """(K,) share of all pixels."""
        return self.pixels / max(1, self.pixels.sum())

    def nearest(self, cluster: int) -> list[tuple[int, float]]:
        """Return the other clusters that the model finds most probable on a cluster's pixels, with that probability."""
        row = self._shared[cluster] / max(self._shared[cluster].sum(), 1e-12)
        others = [i for i in np.argsort(-row, kind="stable").tolist() if i != cluster and self.pixels[i]]
        return [(i, float(row[i])) for i in others[:NEAREST]]

    def add(self, name: Path, image: np.ndarray, labels: np.ndarray, certainty: np.ndarray, shared: np.ndarray) -> None:
        """Count the clusters of an image, and keep its regions that are better than those kept before.

        Args:
            name: of the image.
            image: (H, W, 3) uint8 RGB.
            labels: (H, W) ids.
            certainty: (H, W) in [0, 1].
            shared: (K, K); row i is the sum of the probabilities of the pixels of cluster i.
        """
        counts = np.bincount(labels.ravel(), minlength=len(self.pixels))
        self.pixels += counts
        self.images += counts > 0
        self.num_images += 1
        self._shared += shared
        scale = min(1.0, _SIDE / max(labels.shape))
        size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        certainty = cv2.resize(certainty, size, interpolation=cv2.INTER_AREA)
        for label, (score, box, mask) in _best_regions(labels, certainty).items():
            kept = self.examples[label]
            if len(kept) < self._most or score > kept[0].score:
                self._keep(label, Example(score, str(name), *_picture(image, box, mask, labels.shape)))

    def _keep(self, label: int, new: Example) -> None:
        """Add a picture; of two that are nearly equal, such as frames of a video, only the better stays."""
        kept = self.examples[label]
        alike = [old for old in kept if np.abs(old.thumbnail - new.thumbnail).mean() < _ALIKE]
        if any(old.score >= new.score for old in alike):
            return
        kept[:] = [old for old in kept if not any(old is other for other in alike)]
        insort(kept, new)
        del kept[: -self._most]


def _best_regions(labels: np.ndarray, certainty: np.ndarray) -> dict[int, tuple[float, tuple, np.ndarray]]:
    """Return for each id that occurs the score, the box and the mask of its best connected region."""
    best = {}
    for label in np.unique(labels).tolist():
        _, components, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]  # component 0 is the rest of the image
        certain = np.bincount(components.ravel(), certainty.ravel())[1:] / areas
        scores = certain * np.sqrt(areas / labels.size)
        i = int(scores.argmax())
        x, y, width, height = box = tuple(stats[i + 1, :4].tolist())
        best[label] = (float(scores[i]), box, components[y : y + height, x : x + width] == i + 1)
    return best


def _picture(image: np.ndarray, box: tuple, mask: np.ndarray, size: tuple[int, int]) -> tuple[bytes, np.ndarray]:
    """Cut a region with some context out of an image; return it as JPEG, and its thumbnail.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x, y, width, height of the region in a map of the given size.
        mask: (height, width) bool, its pixels in the box.
        size: height and width of that map.
    """
    x, y, width, height = box
    region = np.zeros(size, bool)
    region[y : y + height, x : x + width] = mask
    margin = round(_CONTEXT * max(width, height)) + 4
    x0, y0, x1, y1 = max(0, x - margin), max(0, y - margin), x + width + margin, y + height + margin
    region = region[y0:y1, x0:x1]
    sy, sx = image.shape[0] / size[0], image.shape[1] / size[1]
    part = image[
        int(y0 * sy) : max(int(y0 * sy) + 1, round((y0 + region.shape[0]) * sy)),
        int(x0 * sx) : max(int(x0 * sx) + 1, round((x0 + region.shape[1]) * sx)),
    ]
    scale = min(_HEIGHT / part.shape[0], _MAX_WIDTH / part.shape[1])
    fit = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    part = cv2.resize(part, fit, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    region = cv2.resize(region.astype(np.float32), fit, interpolation=cv2.INTER_LINEAR) > 0.5
    # The context is paler, but stays clear enough to tell what the region belongs to.
    drawn = np.where(region[..., None], part, (0.6 * part + 70).astype(np.uint8))
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, _OUTLINE, 1, cv2.LINE_AA)
    _, jpeg = cv2.imencode(".jpg", drawn[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return jpeg.tobytes(), cv2.resize(part, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
