"""Checks of label maps: that the files exist, and that their sizes and values are right."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from detectron2.data import Metadata
from tqdm import tqdm

from densesiam_d2.image_io import UnreadableImageError, displayed_size, read_label_and_palette
from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.findings import Tally
from densesiam_d2.labels.subset import evenly_spaced

from .image_file_checks import look_at_images, missing_files

__all__ = ["look_at_label_maps"]


def look_at_label_maps(
    records: Sequence[dict], classes: list[str] | None, metadata: Metadata, sample: int | None, tally: Tally
) -> None:
    """Check that the files of records exist, and check the values in a sample of their label maps.

    Args:
        records: dicts of "file_name" and "sem_seg_file_name".
        classes: names of the values, after the metadata's "label_map" is applied; None accepts every value as a class.
        metadata: metadata of the set; "label_map", "ignore_label" and "raw_values" are read.
        sample: number of label maps and image headers to read; None reads all.
        tally: gets the findings.
    """
    unlabelled = [record["file_name"] for record in records if "sem_seg_file_name" not in record]
    for path in unlabelled:
        tally.note("label-missing", f"none is named for {path}")
    labelled = [record for record in records if "sem_seg_file_name" in record]
    for path in sorted(missing_files([record["sem_seg_file_name"] for record in labelled])):
        tally.note("label-missing", path)
    look_at_images(records, sample, tally)
    if tally.findings().of("error"):
        return
    chosen = evenly_spaced(labelled, sample)
    counts, colors = np.zeros(256, np.int64), {}
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL, so the threads run in parallel
        found = pool.map(_histogram, chosen)
        progress = tqdm(found, total=len(chosen), desc="label maps", unit="", disable=None, leave=False)
        for record, outcome in zip(chosen, progress, strict=True):
            if isinstance(outcome[0], str):
                tally.note(*outcome)
                continue
            path, (of_file, palette) = record["sem_seg_file_name"], outcome
            if palette is not None:
                _judge_palette(path, np.flatnonzero(of_file[: len(palette)]), palette, colors, tally)
            counts += _judge_values(path, of_file, classes, metadata, tally)
    part = "" if len(chosen) == len(labelled) else f" in the sample of {len(chosen):,} of {len(labelled):,} label maps"
    _judge_classes(counts, part, classes, metadata, tally)


def _histogram(record: dict) -> tuple[np.ndarray, np.ndarray | None] | tuple[str, str]:
    """Return the count of each raw value (256,) of a label map and its palette, or kind and text of a finding."""
    path, image = record["sem_seg_file_name"], record["file_name"]
    try:
        label, palette = read_label_and_palette(path)
    except UnreadableImageError as error:
        return "label-unreadable", str(error)
    try:
        size = displayed_size(image)
    except UnreadableImageError as error:
        return "image-unreadable", str(error)
    if label.shape != size[::-1]:
        return "label-size", f"{path}: {label.shape[1]} x {label.shape[0]}, its image {size[0]} x {size[1]}"
    return cv2.calcHist([label], [0], None, [256], [0, 256]).reshape(256).astype(np.int64), palette


def _judge_palette(path: str, values: np.ndarray, palette: np.ndarray, colors: dict, tally: Tally) -> None:
    """Note a file that shows a value in another colour than an earlier one, as pictures of labels do.

    Args:
        path: the file.
        values: those that occur in it.
        palette: (n, 3) colours of the values.
        colors: value -> colour, and the file that had it first; the new ones are added.
        tally: gets the finding.
    """
    for value in values.tolist():
        color = tuple(palette[value].tolist())
        first, first_path = colors.setdefault(value, (color, path))
        if color != first:
            tally.note("label-palette", f"{path}: value {value} is {color}, but {first} in {first_path}")
            return


def _judge_values(
    path: str, counts: np.ndarray, classes: list[str] | None, metadata: Metadata, tally: Tally
) -> np.ndarray:
    """Return the pixel counts of the classes and the ignore label (256,), and note values that are neither of them."""
    label_map, ignore = metadata.get("label_map"), metadata.get("ignore_label", IGNORE)
    if metadata.get("raw_values"):
        strange = np.setdiff1d(np.flatnonzero(counts), metadata.raw_values)
        if len(strange):
            tally.note("label-value", f"{path}: {strange[:5].tolist()}; {metadata.get('raw_values_hint')}")
    if label_map is not None:
        counts = np.bincount(np.asarray(label_map), counts, minlength=256).astype(np.int64)
    if classes is not None:
        values = np.flatnonzero(counts)
        wrong = values[(values >= len(classes)) & (values != ignore)]
        if len(wrong):
            known = f"classes are 0 to {len(classes) - 1}, {ignore} does not count"
            tally.note("label-value", f"{path}: {wrong[:5].tolist()} in {int(counts[wrong].sum()):,} pixels; {known}")
    return counts


def _judge_classes(counts: np.ndarray, part: str, classes: list[str] | None, metadata: Metadata, tally: Tally) -> None:
    """Note classes without pixels, given the pixel counts (256,); ``part`` is "" or describes the sample in words."""
    ignore, total = metadata.get("ignore_label", IGNORE), counts.sum()
    if not total:
        return
    names = {number: name for number, name in enumerate(classes or map(str, range(256))) if number != ignore}
    percent = 100 * counts[ignore] / total
    share = f"{percent:.{0 if percent >= 1 else 2}f} % of the pixels are {ignore}, the ignore label{part}"
    present = [name for number, name in names.items() if counts[number]]
    absent = [name for number, name in names.items() if not counts[number]] if classes else []
    if not present:
        tally.note("all-ignored", share)
        return
    if len(present) == 1 and absent:
        binary = "; masks of 0 and 255 need 0 and 1" if len(classes) == 2 and counts[255] else ""
        never = ", ".join(repr(name) for name in absent[:3]) + (", ..." if len(absent) > 3 else "")
        tally.note("one-class", f"{present[0]!r}; {never} never occur{'s' * (len(absent) == 1)}; {share}{binary}")
    for name in absent if len(present) > 1 else ():
        tally.note("class-unused", f"{name!r}; {share}")
