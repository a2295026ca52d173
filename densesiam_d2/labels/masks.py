"""Masks of annotations, polygons and run lengths: check them before the C code of pycocotools reads them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["as_rle", "clean_polygons", "is_finite", "mask_bounds", "rle_problem"]

FLAT = 1e-6  # square pixels
FAR = 10  # image sides; pycocotools needs memory in proportion to the length of a polygon's edges, and crashes
NUMBERS = {int, float, bool}  # what JSON's numbers become; a bool is an int in Python


def is_finite(value: Any) -> bool:
    """Tell whether a value of JSON is a number that is finite as a float; whole numbers of JSON have no limit."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def clean_polygons(segmentation: Any, size: tuple[int, int]) -> tuple[list[list[float]], list[str]]:
    """Return the polygons that enclose an area, and the kinds of problems of the others.

    Args:
        segmentation: the value in the file: lists of x, y, x, y, ... in pixels.
        size: height and width of the image.

    Returns:
        The usable polygons, and one of "polygon-short", "polygon-odd", "polygon-flat", "mask-nan", "mask-far" for each
        other one; "polygon-bare" for one polygon as a list of numbers or of points, "mask-type" for anything else.
    """
    if not isinstance(segmentation, list):
        return [], ["mask-type"]
    problems = []
    if set(map(type, segmentation)) <= NUMBERS:
        segmentation, problems = [segmentation], ["polygon-bare"]
    elif len(segmentation) > 2 and all(isinstance(p, list) and len(p) == 2 for p in segmentation):
        segmentation, problems = [[number for point in segmentation for number in point]], ["polygon-bare"]
    kept = []
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and set(map(type, polygon)) <= NUMBERS
        try:
            points = np.array(polygon if numbers else [], dtype=np.float64)
        except OverflowError:
            points = np.array([np.inf])
        if not numbers:
            problems.append("mask-type")
        elif not np.isfinite(points).all():
            problems.append("mask-nan")
        elif len(points) and np.abs(points).max() > FAR * max(size):
            problems.append("mask-far")
        elif len(points) % 2:
            problems.append("polygon-odd")
        elif len(points) < 6:
            problems.append("polygon-short")
        elif _encloses_nothing(points):
            problems.append("polygon-flat")
        else:
            kept.append(polygon)
    return kept, problems


def _encloses_nothing(points: np.ndarray) -> bool:
    """Tell whether all points lie on one line. The signed area cannot tell: it is 0 for some self-crossing polygons."""
    x, y = points[0::2] - points[0], points[1::2] - points[1]
    if abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) > FLAT:
        return False
    far = np.argmax(x * x + y * y)
    return bool(np.abs(x * y[far] - y * x[far]).max() <= FLAT)


def as_rle(segmentation: list | Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """Return the compressed run lengths of a mask, which pycocotools needs.

    Args:
        segmentation: usable polygons, or run lengths, compressed or not.
        size: height and width of the image.
    """
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(dict(segmentation), *size)
    return segmentation


def mask_bounds(segmentation: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return x0, y0, x1, y1 around a mask, in pixels; None if it is unusable.

    Args:
        segmentation: the value in the file.
        size: height and width of the image.
    """
    if isinstance(segmentation, Mapping):
        if rle_problem(segmentation, size):
            return None
        x, y, w, h = mask_util.toBbox(as_rle(segmentation, size)).tolist()
        return x, y, x + w, y + h
    polygons = clean_polygons(segmentation, size)[0] if segmentation else []
    if not polygons:
        return None
    xs, ys = [v for p in polygons for v in p[0::2]], [v for p in polygons for v in p[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def rle_problem(rle: Mapping, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a run-length mask: "rle-size", "rle-damaged", or None.

    pycocotools does not check: runs that do not fill the image decode to uninitialised memory.

    Args:
        rle: "size" (height, width) and "counts": run lengths, or COCO's compressed string of them.
        size: height and width of the image.
    """
    if not isinstance(rle.get("size"), list | tuple) or list(rle["size"]) != list(size):
        return "rle-size"
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = counts.encode(errors="replace")
    if isinstance(counts, bytes):
        counts = _decompress(counts)
    try:
        runs = np.asarray(counts)
        sound = runs.ndim == 1 and runs.dtype.kind in "iu" and runs.min() >= 0 and runs.sum() == size[0] * size[1]
    except (TypeError, ValueError):
        sound = False
    return None if sound else "rle-damaged"


def _decompress(text: bytes) -> np.ndarray | None:
    """Return the run lengths of a compressed string, None if it is not valid.

    Each number is little-endian in groups of 5 bits (6th bit: more follow), the last group's 5th bit the sign; from the
    fourth number on, the difference to the number two before. Source: rleFrString in pycocotools, maskApi.c.
    """
    code = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(code) or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        return None
    last = (code & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.append(starts, len(code)))
    if lengths.max() > 7:  # more than 32 bits
        return None
    place = np.arange(len(code)) - np.repeat(starts, lengths)
    values = np.add.reduceat((code & 31) << (5 * place), starts)
    values -= np.where(code[last] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])  # 1, 3, 5, ... and 2, 4, 6, ...; number 0 stands alone
    return values
