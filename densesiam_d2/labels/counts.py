"""A table of what was found in each image: how many objects of each class, and how large they are."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from densesiam_d2.atomic import atomic_write

__all__ = ["CountsWriter"]


class CountsWriter:
    """Write a CSV file with one row for each image, also for images in which nothing was found.

    The columns are "image", "width" and "height" in pixels, "count" and "area" of all classes together, and for each
    class "<name> count" and "<name> area". Areas are in pixels of the image.
    """

    def __init__(self, path: Path, classes: Sequence[str]):
        """Store where and what to write.

        Args:
            path: the file; it appears when the ``with`` block ends without an error.
            classes: names of the classes.
        """
        self._writing, self._classes = atomic_write(path), list(classes)

    def __enter__(self) -> "CountsWriter":
        # Names of files that are not UTF-8 are written as the bytes that they are.
        coding = {"encoding": "utf-8", "errors": "surrogateescape"}
        self._text = io.TextIOWrapper(self._writing.__enter__(), **coding, newline="", write_through=True)
        self._table = csv.writer(self._text, lineterminator="\n")
        of_classes = [f"{name} {what}" for name in self._classes for what in ("count", "area")]
        self._table.writerow(["image", "width", "height", "count", "area", *of_classes])
        return self

    def add(self, image: str, size: tuple[int, int], counts: Sequence[int], areas: Sequence[float]) -> None:
        """Write the row of an image.

        Args:
            image: its name.
            size: height and width in pixels.
            counts: number of objects of each class.
            areas: pixels of each class; whole numbers are written without a decimal point.
        """
        rounded = [int(area) if area == int(area) else round(float(area), 1) for area in [sum(areas), *areas]]
        of_classes = [value for pair in zip(counts, rounded[1:], strict=True) for value in pair]
        height, width = size
        self._table.writerow([image, width, height, sum(counts), rounded[0], *of_classes])

    def __exit__(self, *error) -> None:
        self._text.detach()  # otherwise the wrapper would close the file
        self._writing.__exit__(*error)
