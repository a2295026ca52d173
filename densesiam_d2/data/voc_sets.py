"""Labelled sets in Pascal VOC's layout."""

import functools
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode

from densesiam_d2.labels.findings import Findings, Tally
from densesiam_d2.labels.voc import is_outside, read_voc_split, read_voc_xml

__all__ = ["adopt_voc", "read_voc"]

# The module that defines the loaders of ``register_pascal_voc`` and of detectron2's built-in sets.
_DETECTRON2_VOC = "detectron2.data.datasets.pascal_voc"

_KINDS = {
    "split": ("error", "the list of the split"),
    "split-twice": ("repaired", "images that the split names again, read once: {n}"),
    "xml-missing": ("error", "images of the split without an XML file: {n}"),
    "xml-unreadable": ("error", "XML files that cannot be used: {n}"),
    "class-unknown": ("error", "objects of a class that the set does not have: {n}; own classes: datasets/README.md"),
    "all-difficult": ("error", "every object is difficult, and so does not count for a score"),
    "boxes-relative": (
        "error",
        "boxes between 0 and 1, but VOC has pixels: {n}; multiply them by width and height of their image",
    ),
    "box-from-0": (
        "warning",
        "boxes that begin before pixel 1, but VOC counts pixels from 1: {n}; if the file counts from 0, add 1 to all",
    ),
    "box-clipped": ("warning", "boxes that reach over the border of their image by more than a pixel: {n}"),
    "box-outside": ("repaired", "boxes outside their image, left out: {n}"),
    "box-empty": ("error", "objects whose box has no area, or is no box: {n}; correct them"),
}


def adopt_voc(name: str, accept: Sequence[str] = ()) -> None:
    """Make :func:`read_voc` the reader of a set that detectron2's ``register_pascal_voc`` registered.

    detectron2's own reader gives the same records, but its errors do not name the file that cannot be read. The set
    also gets its evaluator_type, if it has none.

    Args:
        name: name of the dataset.
        accept: kinds of findings that are accepted and so raise no error.
    """
    loader = DatasetCatalog[name]
    if getattr(loader, "__module__", None) == _DETECTRON2_VOC or getattr(loader, "func", None) is _load_voc:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load_voc, name, accept))
        metadata = MetadataCatalog.get(name)
        metadata.evaluator_type = metadata.get("evaluator_type", "pascal_voc")


def _load_voc(name: str, accept: Sequence[str]) -> list[dict]:
    records, findings = read_voc(MetadataCatalog.get(name))
    findings.accept(["all-difficult", *accept]).raise_errors()  # training can use difficult objects
    return records


def read_voc(metadata: Metadata) -> tuple[list[dict], Findings]:
    """Read all annotations of a split.

    Args:
        metadata: metadata of a set that ``register_pascal_voc`` registered; "dirname", "split" and "thing_classes" are
            read.

    Returns:
        detectron2's records, which include "difficult" objects, and the findings.

    Raises:
        FileNotFoundError: the list of the split does not exist.
        ValueError: the list is not UTF-8.
    """
    root, classes = Path(metadata.dirname), list(metadata.thing_classes)
    tally = Tally(_KINDS, str(root))
    records, difficult = [], set()
    split = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
    for image_id in _image_ids(split, root / "Annotations", tally):
        xml = root / "Annotations" / f"{image_id}.xml"
        if not xml.is_file():
            tally.note("xml-missing", str(xml))
            continue
        try:
            content = read_voc_xml(xml)
        except ValueError as error:
            tally.note("xml-unreadable", str(error))
            continue
        difficult |= {bool(entry["difficult"]) for entry in content["objects"]}
        records.append(
            {
                "file_name": str(root / "JPEGImages" / f"{image_id}.jpg"),
                "image_id": image_id,
                "height": content["height"],
                "width": content["width"],
                "annotations": [a for o in content["objects"] if (a := _annotation(o, content, xml, classes, tally))],
            }
        )
    if difficult == {True}:
        tally.note("all-difficult", f"{len(records)} images")
    return records, tally.findings()


def _image_ids(file: Path, annotations: Path, tally: Tally) -> Sequence[str]:
    lines = read_voc_split(file, annotations)
    columns = [number for number, words in enumerate(lines, start=1) if len(words) > 1]
    if columns:
        text = f"{file}, line {columns[0]}: {' '.join(lines[columns[0] - 1])!r}; leave the names only, one a line"
        tally.note("split", f"{text} (the files of one class mark its images by 1 and -1)")
        return []
    ids = list(dict.fromkeys(words[0] for words in lines if words))
    for _ in range(sum(map(bool, lines)) - len(ids)):
        tally.note("split-twice", file.name)
    if not ids:
        tally.note("split", f"{file} names no image")
    return ids


def _annotation(entry: dict, image: dict, xml: Path, classes: list[str], tally: Tally) -> dict | None:
    if entry["name"] not in classes:
        known = ", ".join(classes[:4])
        tally.note("class-unknown", f"{xml}: {entry['name']!r}; the {len(classes)} classes are {known}, ...")
        return None
    x0, y0, x1, y1 = entry["bbox"]
    if not (x1 >= x0 and y1 >= y0):  # also true if one of them is NaN
        tally.note("box-empty", f"{xml}: {entry['name']!r}, {entry['bbox']}")
        return None
    width, height = image["width"], image["height"]
    if max(x1, y1) <= 1 < min(width, height):
        tally.note("boxes-relative", f"{xml}: {entry['name']!r}, {entry['bbox']}")
        return None
    if is_outside(entry["bbox"], width, height):
        tally.note("box-outside", f"{xml}: {entry['name']!r}, {entry['bbox']} in {width} x {height} pixels")
        return None
    if 0 <= min(x0, y0) < 1:
        tally.note("box-from-0", f"{xml}: {entry['name']!r}, {entry['bbox']}")
    if min(x0, y0) < 0 or 0 < width < x1 - 1 or 0 < height < y1 - 1:  # a size of 0 is a finding of its own
        tally.note("box-clipped", f"{xml}: {entry['name']!r}, {entry['bbox']} in {width} x {height} pixels")
    box = {"bbox": [x0 - 1.0, y0 - 1.0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}
    return {"category_id": classes.index(entry["name"]), **box}
