"""Datasets whose names contain their paths, so that they can be used without Python code.

``folder:/path``, ``list:/path.txt`` and ``index:/path.index`` are images without labels,
``coco:FILE.json[,images=DIR]`` and ``masks:IMAGES,labels=DIR[,classes=FILE]`` have labels; both take
``,subset=N[,seed=S]`` as well. Relative paths start at the working directory.
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_sets import register_coco
from .image_listing import load_image_folder, load_image_list, open_index
from .label_folders import read_classes, register_label_folder

__all__ = [
    "COCO_PREFIX",
    "FOLDER_PREFIX",
    "INDEX_PREFIX",
    "LIST_PREFIX",
    "MASKS_PREFIX",
    "UNLABELLED_PREFIXES",
    "folder_of",
    "index_beside",
    "load_records",
    "register_path_datasets",
]

FOLDER_PREFIX, LIST_PREFIX, INDEX_PREFIX = UNLABELLED_PREFIXES = ("folder:", "list:", "index:")
COCO_PREFIX, MASKS_PREFIX = "coco:", "masks:"

_OPTIONS = {COCO_PREFIX: ("images", "subset", "seed"), MASKS_PREFIX: ("labels", "classes", "subset", "seed")}
_FORMS = {
    FOLDER_PREFIX: "folder:DIR",
    LIST_PREFIX: "list:FILE.txt",
    INDEX_PREFIX: "index:DIR.index",
    COCO_PREFIX: "coco:FILE.json[,images=DIR][,subset=N,seed=S]",
    MASKS_PREFIX: "masks:IMAGES,labels=DIR[,classes=FILE][,subset=N,seed=S]",
}


def register_path_datasets(names: Iterable[str]) -> None:
    """Register each name that has one of the prefixes above as a dataset.

    Images and annotations are read when the dataset is loaded, not here. Names without a prefix and names that are
    already registered are skipped. If a folder has an index of the same name beside it (``/path`` and ``/path.index``),
    the names of its images are read from the index.

    Raises:
        ValueError: the part after the prefix has a wrong form, or a file of class names cannot be read.
        FileNotFoundError: a file of class names does not exist.
    """
    for name in names:
        prefix, _, rest = name.partition(":")
        if name not in DatasetCatalog and f"{prefix}:" in _REGISTER:
            if not rest:  # would be the working directory
                raise ValueError(f"{name!r} has nothing for path; the form is {_FORMS[f'{prefix}:']}")
            _REGISTER[f"{prefix}:"](name, rest)


def load_records(names: Sequence[str]) -> list[dict]:
    """Return detectron2's dataset dicts of registered datasets, and of names with one of the prefixes above."""
    register_path_datasets(names)
    return [record for name in names for record in DatasetCatalog.get(name)]


def folder_of(source: str) -> Path:
    """Return the folder that a command line names, as a path or as ``folder:/path``.

    Raises:
        ValueError: it names none.
    """
    path = source.removeprefix(FOLDER_PREFIX)
    if not path:  # would be the working directory
        raise ValueError(f"{source!r} names no folder")
    return Path(path).expanduser()


def index_beside(folder: Path) -> Path:
    """Return where the index of a folder of images is looked for: FOLDER.index."""
    place = Path(os.path.normpath(folder.absolute()))  # "." and "a/.." have no name
    return place.with_name(f"{place.name}.index")


def _register_folder(name: str, path: str) -> None:
    root = Path(path).expanduser()
    index = index_beside(root)
    if (index / "index.json").is_file():
        _register_index(name, str(index), root)
    else:
        DatasetCatalog.register(name, lambda: load_image_folder(root))
        MetadataCatalog.get(name).set(image_root=str(root))


def _register_list(name: str, path: str) -> None:
    file = Path(path).expanduser()
    DatasetCatalog.register(name, lambda: load_image_list(file))
    MetadataCatalog.get(name).set(image_list=str(file))


def _register_index(name: str, path: str, root: Path | None = None) -> None:
    index = Path(path).expanduser()
    DatasetCatalog.register(name, functools.partial(open_index, index, root))
    MetadataCatalog.get(name).set(image_index=str(index))


def _register_coco(name: str, rest: str) -> None:
    path, options = _split(name, COCO_PREFIX, rest)
    json_file = Path(path).expanduser()
    images = Path(options["images"]).expanduser() if "images" in options else json_file.parent
    register_coco(name, json_file, images, subset=_subset(name, COCO_PREFIX, options))


def _register_masks(name: str, rest: str) -> None:
    path, options = _split(name, MASKS_PREFIX, rest)
    if "labels" not in options:
        raise ValueError(f"{name!r} names no folder of label maps; the form is {_FORMS[MASKS_PREFIX]}")
    labels = Path(options["labels"]).expanduser()
    classes = Path(options["classes"]).expanduser() if "classes" in options else None
    register_label_folder(
        name,
        Path(path).expanduser(),
        labels,
        classes=read_classes(labels, classes),
        subset=_subset(name, MASKS_PREFIX, options),
    )


_REGISTER = {
    FOLDER_PREFIX: _register_folder,
    LIST_PREFIX: _register_list,
    INDEX_PREFIX: _register_index,
    COCO_PREFIX: _register_coco,
    MASKS_PREFIX: _register_masks,
}


def _split(name: str, prefix: str, rest: str) -> tuple[str, dict[str, str]]:
    """Split known ``,key=value`` parts off the end; the rest is the path, which may contain any characters."""
    options = {}
    pattern = re.compile(rf"(.*),({'|'.join(_OPTIONS[prefix])})=(.*)", re.DOTALL)
    while (match := pattern.fullmatch(rest)) and match[2] not in options:
        rest, options[match[2]] = match[1], match[3]
    if match and match[3].isdecimal():
        raise ValueError(f"{name!r} has {match[2]}= twice; the form is {_FORMS[prefix]}")
    empty = [key for key, value in {"path": rest, **options}.items() if not value]
    if empty:
        raise ValueError(f"{name!r} has nothing for {empty[0]}; the form is {_FORMS[prefix]}")
    return rest, options


def _subset(name: str, prefix: str, options: dict[str, str]) -> tuple[int, int] | None:
    """Return the number of images and the seed of a subset, or None for the whole set."""
    if "subset" not in options and "seed" not in options:
        return None
    numbers = options.get("subset", ""), options.get("seed", "0")
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) == 0:
        raise ValueError(
            f"{name!r}: subset= and seed= are whole numbers, subset= above 0 (got {numbers[0]!r}, {numbers[1]!r}); the "
            f"form is {_FORMS[prefix]}"
        )
    return int(numbers[0]), int(numbers[1])
