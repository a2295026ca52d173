"""Check that the files that records name exist, and that images have the size that the records declare."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import Metadata
from tqdm import tqdm

from densesiam_d2.image_io import UnreadableImageError, displayed_size
from densesiam_d2.labels.findings import Tally
from densesiam_d2.labels.subset import evenly_spaced

__all__ = ["look_at_cityscapes_files", "look_at_images", "missing_files"]


def look_at_images(records: Sequence[dict], sample: int | None, tally: Tally) -> None:
    """Note images that do not exist, and images (of a sample) whose size is not the one that their record declares."""
    missing = missing_files([record["file_name"] for record in records])
    for path in sorted(missing):
        forms = {unicodedata.normalize(form, path) for form in ("NFC", "NFD")}
        other = any(form != path and Path(form).exists() for form in forms)
        text = f"{path}, but its accents have another Unicode form there: rename the file" if other else path
        tally.note("image-backslash" if "\\" in path else "image-missing", text)
    for record in tqdm(evenly_spaced(records, sample), desc="image headers", unit="", disable=None, leave=False):
        path = record["file_name"]
        if path in missing or "width" not in record:
            continue
        try:
            size = displayed_size(path)
        except UnreadableImageError as error:
            tally.note("image-unreadable", error)
            continue
        declared = (record["width"], record["height"])
        if size != declared:
            swapped = ", which are swapped: of the file before its EXIF rotation?" if size == declared[::-1] else ""
            tally.note(
                "image-size", f"{path} has {size[0]} x {size[1]}, the set says {declared[0]} x {declared[1]}{swapped}"
            )


def missing_files(paths: Sequence[str]) -> set[str]:
    """Return the paths that do not exist. Each folder is listed once, which is faster than asking for each file.

    Files in a folder that may not be listed do not count as missing: reading them says what is wrong.
    """
    folders: dict[str, set | None] = {}
    missing = set()
    for path in paths:
        folder, _, name = str(path).rpartition("/")
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or "."))  # noqa: PTH208
            except PermissionError:
                folders[folder] = None
            except OSError:
                folders[folder] = set()
        if folders[folder] is not None and name not in folders[folder]:
            missing.add(path)
    return missing


def look_at_cityscapes_files(images: Sequence[Path], metadata: Metadata, kinds: Sequence[str], tally: Tally) -> None:
    """Note missing files, such as ``*_gtFine_labelIds.png``, that belong to images in Cityscapes' layout.

    Of polygons only begin and end are looked at: to parse them all takes a third of the time that the loader takes.

    Args:
        images: files in ``leftImg8bit/<split>/<city>``.
        metadata: metadata of the set; "gt_dir" is read.
        kinds: for each file of an image, the part of its name after ``_gtFine_``.
        tally: gets the findings "label-missing" and "train-ids-missing", "polygons-damaged", and "load" for images with
            another name, because detectron2's loader fails on them.
    """
    wanted = []
    for image in images:
        if not image.name.endswith("_leftImg8bit.png"):
            tally.note("load", f"{image} is no *_leftImg8bit.png, which detectron2 refuses: take it away")
            continue
        stem = Path(metadata.gt_dir) / image.parent.name / image.name.removesuffix("_leftImg8bit.png")
        wanted += [f"{stem}_gtFine_{kind}" for kind in kinds]
    missing = missing_files(wanted)
    for path in sorted(missing):
        tally.note("train-ids-missing" if path.endswith("TrainIds.png") else "label-missing", path)
    for path in wanted:
        if path.endswith(".json") and path not in missing:
            text = Path(path).read_bytes().strip()
            if not (text.startswith(b"{") and text.endswith(b"}")):
                tally.note("polygons-damaged", path)
