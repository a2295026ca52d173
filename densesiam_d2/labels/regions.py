"""Connected regions of label maps as polygons, and the COCO file that holds them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from densesiam_d2.atomic import atomic_write

__all__ = ["CocoWriter", "Region", "connected_regions", "count_regions", "region_polygon"]


class Region(NamedTuple):
    """Pixels of one id that touch each other at their sides.

    Attributes:
        label: the id.
        box: x, y, width and height in pixels.
        mask: (height, width) bool, the pixels of the region in its box.
        area: number of pixels.
    """

    label: int
    box: tuple[int, int, int, int]
    mask: np.ndarray
    area: int


def connected_regions(labels: np.ndarray, num: int, min_area: int) -> Iterator[Region]:
    """Yield the connected regions (4 neighbours) of a label map, by id.

    Args:
        labels: (H, W) ids; ids from ``num`` on, such as an ignore label, have no regions.
        num: number of ids.
        min_area: smaller regions are left out.
    """
    for label in np.unique(labels).tolist():
        if label >= num:
            continue
        count, components, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        for i in range(1, count):
            x, y, width, height, area = stats[i].tolist()
            if area >= min_area:
                mask = components[y : y + height, x : x + width] == i
                yield Region(label, (x, y, width, height), mask, area)


def count_regions(labels: np.ndarray, num: int, min_area: int) -> list[int]:
    """Return how many regions :func:`connected_regions` yields for each id, at the same cost for any number of ids.

    In a map of twice the size, a cell between two pixels is set if they have the same id. All regions are then
    components of one mask.
    """
    height, width = labels.shape
    joined = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    joined[::2, ::2] = 1
    joined[1::2, ::2] = labels[1:] == labels[:-1]
    joined[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    count, components = cv2.connectedComponents(joined, connectivity=4)
    components = components[::2, ::2].ravel()
    areas, ids = np.bincount(components, minlength=count), np.zeros(count, np.int64)
    ids[components] = labels.ravel()
    return np.bincount(ids[1:][areas[1:] >= min_area], minlength=num)[:num].tolist()  # component 0 is what is not set


def region_polygon(region: Region) -> list[int]:
    """Return one polygon along the sides of a region's pixels; pycocotools turns it into exactly the region's pixels.

    COCO's polygons have no holes. Each hole is joined to the outline by a cut that is passed in both directions and so
    has no area.

    Returns:
        x, y, x, y, ... in pixels of the image; pixel i spans i to i + 1.
    """
    # OpenCV's outlines run through the centres of the border's pixels. With four pixels for each one, they run through
    # a pixel beside each corner, and halving gives the corner.
    large = region.mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    rings, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners((ring[:, 0] + 1) // 2) for ring in rings]
    is_hole = tree[0, :, 3] >= 0
    (outline,) = (ring for ring, hole in zip(rings, is_hole, strict=True) if not hole)
    for ring, hole in zip(rings, is_hole, strict=True):
        if hole:
            i = np.square(outline - ring[0]).sum(axis=1).argmin()  # the cut: from the nearest corner and back to it
            outline = np.concatenate([outline[: i + 1], ring, ring[:1], outline[i:]])
    return (outline + region.box[:2]).ravel().tolist()


def _corners(ring: np.ndarray) -> np.ndarray:
    """Return a ring (n, 2) without the points that equal the one before or lie straight between their neighbours."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


class CocoWriter:
    """Write regions as annotations in COCO's format, one image at a time; nothing but the image entries is kept.

    An annotation has "score" besides COCO's keys: the mean certainty of its pixels.
    """

    def __init__(self, path: Path, classes: Sequence[str], min_area: int):
        """Store where and what to write.

        Args:
            path: the file; it appears when the ``with`` block ends without an error.
            classes: names of the ids; COCO's category ids are 1 larger, because tools take 0 for the background.
            min_area: smaller regions are left out.
        """
        self._writing, self._classes, self._min_area = atomic_write(path), list(classes), min_area
        self.num_annotations, self._images = 0, []

    def __enter__(self) -> "CocoWriter":
        self._file = self._writing.__enter__()
        categories = [{"id": i, "name": name} for i, name in enumerate(self._classes, start=1)]
        self._file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": ['.encode())
        return self

    def add(self, file_name: str, labels: np.ndarray, certainty: np.ndarray) -> None:
        """Write the regions of an image.

        Args:
            file_name: of the image, relative to the folder of images.
            labels: (H, W) ids.
            certainty: (H, W) in [0, 1].
        """
        image_id = len(self._images) + 1
        height, width = labels.shape
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for region in connected_regions(labels, len(self._classes), self._min_area):
            x, y, w, h = region.box
            annotation = {
                "id": self.num_annotations + 1,
                "image_id": image_id,
                "category_id": region.label + 1,
                "bbox": list(region.box),
                "area": region.area,
                "segmentation": [region_polygon(region)],
                "iscrowd": 0,
                "score": round(float(certainty[y : y + h, x : x + w][region.mask].mean()), 4),
            }
            self._file.write(
                f"{',' if self.num_annotations else ''}\n{json.dumps(annotation, separators=(',', ':'))}".encode()
            )
            self.num_annotations += 1

    def __exit__(self, *error) -> None:
        if error[0] is None:
            self._file.write(f'],\n"images": {json.dumps(self._images)}}}\n'.encode())
        self._writing.__exit__(*error)
