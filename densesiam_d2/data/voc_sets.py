"""A look at annotations in Pascal VOC's layout, before detectron2's loader reads them."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.data import Metadata

from densesiam_d2.labels.findings import Findings, Tally
from densesiam_d2.labels.voc import read_voc_xml

from .text_files import read_lines

__all__ = ["look_at_voc"]

_KINDS = {
    "split": ("error", "the list of the split"),
    "xml-missing": ("error", "images of the split without an XML file: {n}"),
    "xml-unreadable": ("error", "XML files that cannot be used: {n}"),
    "class-unknown": ("error", "objects of a class that the set does not have: {n}; own classes: datasets/README.md"),
    "box-empty": ("error", "objects whose box has no area, or is no box: {n}; correct them"),
}


def look_at_voc(metadata: Metadata, findings: Findings) -> tuple[list[dict], list[str]]:
    """Read all annotations of a split.

    Args:
        metadata: of a set that detectron2's ``register_pascal_voc`` registered.
        findings: what is odd is added here.

    Returns:
        Records with "file_name", "width", "height" and "annotations" (category_id, bbox as corners), and the classes.
    """
    root, classes = Path(metadata.dirname), list(metadata.thing_classes)
    tally = Tally(_KINDS, str(root))
    records = []
    for image_id in _image_ids(root / "ImageSets" / "Main" / f"{metadata.split}.txt", tally):
        xml = root / "Annotations" / f"{image_id}.xml"
        if not xml.is_file():
            tally.note("xml-missing", str(xml))
            continue
        try:
            content = read_voc_xml(xml)
        except ValueError as error:
            tally.note("xml-unreadable", str(error))
            continue
        annotations = [a for entry in content["objects"] if (a := _annotation(entry, xml, classes, tally))]
        size = {"width": content["width"], "height": content["height"]}
        records.append({"file_name": str(root / "JPEGImages" / f"{image_id}.jpg"), **size, "annotations": annotations})
    findings += tally.findings()
    return records, classes


def _image_ids(file: Path, tally: Tally) -> Sequence[str]:
    lines = [line.split() for line in read_lines(file)]
    columns = [number for number, words in enumerate(lines, start=1) if len(words) > 1]
    if columns:
        text = f"{file}, line {columns[0]}: {' '.join(lines[columns[0] - 1])!r}; leave the names only, one a line"
        tally.note("split", f"{text} (the files of one class mark its images by 1 and -1)")
        return []
    ids = [words[0] for words in lines if words]
    if not ids:
        tally.note("split", f"{file} names no image")
    return ids


def _annotation(entry: dict, xml: Path, classes: list[str], tally: Tally) -> dict | None:
    if entry["name"] not in classes:
        known = ", ".join(classes[:4])
        tally.note("class-unknown", f"{xml}: {entry['name']!r}; the {len(classes)} classes are {known}, ...")
        return None
    x0, y0, x1, y1 = entry["bbox"]
    if not (x1 >= x0 and y1 >= y0):  # also where one is NaN
        tally.note("box-empty", f"{xml}: {entry['name']!r}, {entry['bbox']}")
        return None
    return {"category_id": classes.index(entry["name"]), "bbox": [x0 - 1, y0 - 1, x1, y1]}
