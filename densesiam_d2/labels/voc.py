"""Annotations in Pascal VOC's XML, as different tools write them."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from densesiam_d2.text_lines import read_lines

__all__ = ["is_outside", "read_voc_split", "read_voc_xml"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc_split(path: str | Path, annotations: str | Path) -> list[list[str]]:
    """Read the list of a split.

    Args:
        path: the list, such as ``ImageSets/Main/train.txt``.
        annotations: folder of the XML files.

    Returns:
        The words of each line: one, the name of an image, if the list is right. A name with spaces that has an XML file
        is one word.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is not UTF-8.
    """
    lines = []
    for line in read_lines(path):
        words = line.split()
        whole = len(words) > 1 and Path(annotations, f"{line.strip()}.xml").is_file()
        lines.append([line.strip()] if whole else words)
    return lines


def is_outside(box: Sequence[float], width: int, height: int) -> bool:
    """Tell whether no pixel of a box (xmin, ymin, xmax, ymax, from 1) is in its image; a size of 0 is unknown."""
    x0, y0, x1, y1 = box
    return min(x1, y1) <= 0 or 0 < width < x0 or 0 < height < y0


def read_voc_xml(path: str | Path) -> dict:
    """Read one annotation file.

    Args:
        path: an existing XML file in VOC's layout; a missing ``<difficult>`` counts as 0.

    Returns:
        "width", "height", and "objects": dicts of "name", "bbox" (xmin, ymin, xmax, ymax as in the file,
        counted from 1) and "difficult".

    Raises:
        ValueError: the file is not XML, a value above is missing or not a number, or a box is outside the objects.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: unknown encodings
        raise ValueError(f"{path}: cannot be read as XML: {error}") from None
    size = {key: int(_number(root, f"size/{key}", path)) for key in ("width", "height")}
    objects, elements = [], root.findall("object")
    lost = len(list(root.iter("bndbox"))) - sum(len(list(element.iter("bndbox"))) for element in elements)
    if lost:
        raise ValueError(f"{path}: {lost} <bndbox> are in no <object> directly below <annotation>")
    for element in elements:
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: an <object> has no <name>")
        if len(element.findall("bndbox")) > 1:
            raise ValueError(f"{path}: the <object> {name} has more than one <bndbox>; give each its own <object>")
        bbox = [_number(element, f"bndbox/{corner}", path) for corner in _CORNERS]
        difficult = (element.findtext("difficult") or "").strip() and _number(element, "difficult", path)
        objects.append({"name": name, "bbox": bbox, "difficult": int(difficult or 0)})
    return {**size, "objects": objects}


def _number(element: ET.Element, tag: str, path: str | Path) -> float:
    text = element.findtext(tag)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: <{tag}> of <{element.tag}> is {text!r}, not a number")
    return number
