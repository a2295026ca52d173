"""Folders of images and of label maps: PNG files with the names of the images, whose pixel values are the classes."""

import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.subset import subset_of
from densesiam_d2.text_lines import counted, listed, read_lines

from .image_listing import walk_images

__all__ = ["load_label_folder", "pair_files", "read_classes", "register_label_folder"]

EXAMPLES = 5


def register_label_folder(
    name: str,
    image_root: Path,
    label_root: Path,
    classes: Sequence[str] | None,
    *,
    ignore_label: int = IGNORE,
    subset: tuple[int, int] | None = None,
) -> None:
    """Register a folder of images and a folder of label maps as a semantic segmentation set.

    Args:
        name: name of the dataset.
        image_root, label_root: the folders; see :func:`pair_files`.
        classes: name of each pixel value, from 0 on; None if unknown.
        ignore_label: pixel value that does not count.
        subset: number of labelled images to draw at random, and the seed of the draw; None takes all images.
    """
    DatasetCatalog.register(name, functools.partial(load_label_folder, image_root, label_root, subset))
    metadata = MetadataCatalog.get(name).set(
        image_root=str(image_root), sem_seg_root=str(label_root), ignore_label=ignore_label, evaluator_type="sem_seg"
    )
    if classes is not None:
        metadata.stuff_classes = list(classes)


class Pairs(NamedTuple):
    """The records of the pairs in two folders, and the files that have no partner in the other folder."""

    records: list[dict]
    images_alone: list[str]
    labels_alone: list[str]


def load_label_folder(image_root: Path, label_root: Path, subset: tuple[int, int] | None = None) -> list[dict]:
    """Return the records of :func:`pair_files`, and log how many files are left out."""
    pairs = pair_files(image_root, label_root, subset)
    logging.getLogger(__name__).info(
        "%d images with label maps in %s; left out: %d images without, %d label maps without an image",
        len(pairs.records),
        label_root,
        len(pairs.images_alone),
        len(pairs.labels_alone),
    )
    return pairs.records


def pair_files(image_root: Path, label_root: Path, subset: tuple[int, int] | None = None) -> Pairs:
    """Find the label map of each image: their paths below the two folders are equal without the endings.

    Images have any ending of ``IMAGE_SUFFIXES``, label maps have the ending ``.png``; upper and lower case are equal.
    Links are followed, hidden files are left out.

    Args:
        image_root, label_root: the folders; one may lie below the other.
        subset: number of pairs to draw at random, and the seed of the draw; None takes all pairs.

    Returns:
        Records of "file_name" and "sem_seg_file_name", and the files without a partner, all sorted by path.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image has a label map, or two files of a folder differ in the ending only.
    """
    others = Counter()
    images = _by_stem(image_root, label_root, others, png=None)
    labels = _by_stem(label_root, image_root, others, png=True)
    stems = sorted(images.keys() & labels.keys())
    if not stems:
        raise ValueError(
            f"no image in {image_root} ({listed(images, EXAMPLES)}) has a label map (.png) of its name in {label_root} "
            f"({listed(labels, EXAMPLES)}); other files in the two: {counted(others, 8) or 'none'}"
        )
    if subset:
        stems = [stems[i] for i in subset_of(len(stems), *subset)]
    return Pairs(
        [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in stems],
        sorted(images[stem] for stem in images.keys() - labels.keys()),
        sorted(labels[stem] for stem in labels.keys() - images.keys()),
    )


def _by_stem(root: Path, other_root: Path, others: Counter, png: bool | None) -> dict[str, str]:
    """Return a dict from path without ending, relative to ``root``, to path, for the files below ``root``.

    Args:
        root: the folder.
        other_root: the folder of the partners; if it lies below ``root``, its files are left out.
        others: counts the files of other kinds, by ending.
        png: True takes ``.png`` files only; None takes all images, but no ``.png`` if the two folders are the same.
    """
    found, own, other = {}, root.resolve(), other_root.resolve()
    inside = other != own and other.is_relative_to(own)
    for path in walk_images(root, others):
        file = Path(path)
        is_png = file.suffix.lower() == ".png"
        if (png and not is_png) or (png is None and is_png and other == own):
            others[file.suffix] += 1
            continue
        if inside and file.resolve().is_relative_to(other):
            continue
        # macOS writes accents as characters of their own, other systems as one with the letter.
        stem = unicodedata.normalize("NFC", str(file.relative_to(root).with_suffix("")))
        if stem in found:
            raise ValueError(f"{found[stem]} and {file} have one name but for the ending: take one of them away")
        found[stem] = path
    return found


def read_classes(label_root: Path, file: Path | None = None) -> list[str] | None:
    """Read class names, one per line; the first line names pixel value 0.

    Args:
        label_root: folder of the label maps.
        file: the file of names; None takes ``classes.txt`` in ``label_root``, or else in its parent folder.

    Returns:
        The names, or None if ``file`` is None and there is no ``classes.txt``.

    Raises:
        FileNotFoundError: ``file`` does not exist.
        ValueError: the file is not UTF-8, is empty, is a table, JSON or YAML, has an empty line before its end, names
            more than 255 classes, or names a class twice.
    """
    if file is None:
        file = next((f for f in (label_root / "classes.txt", label_root.parent / "classes.txt") if f.is_file()), None)
        if file is None:
            return None
    if not file.is_file():
        raise FileNotFoundError(f"the class names {file} do not exist")
    names = [line.strip() for line in read_lines(file)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ValueError(f"{file} names no class; write one name a line, the first for pixel value 0")
    if re.match(r"[#{\[]|.*:$|(names?|id|label|class)[,;\t]", names[0], re.IGNORECASE):
        raise ValueError(f"{file}: line 1 is {names[0][:60]!r}, no class; write one name a line and nothing else")
    if "" in names:
        raise ValueError(f"{file}: line {names.index('') + 1} is empty; the line number is the pixel value, so name it")
    if len(names) > 255:
        raise ValueError(f"{file} names {len(names)} classes; label maps hold 255, with 255 as the ignore label")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{file} names the class {twice[0]!r} twice; scores go by name")
    return names
