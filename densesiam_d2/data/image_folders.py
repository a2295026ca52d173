"""Images without annotations, straight from a folder or a list: ``folder:/path`` and ``list:/path.txt`` as names."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .image_io import IMAGE_SUFFIXES

__all__ = ["FOLDER_PREFIX", "LIST_PREFIX", "load_image_folder", "load_image_list", "register_path_datasets"]

FOLDER_PREFIX = "folder:"
LIST_PREFIX = "list:"


def load_image_folder(*roots: str | Path) -> list[dict]:
    """List all images below some folders, in the order of the folders and sorted by path within each.

    Args:
        roots: folders. Links are followed; hidden files and folders are left out.

    Returns:
        Dicts of "file_name" and "image_id".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder holds no image.
        OSError: a folder, or one below it, cannot be read.
    """
    records = []
    for root in map(Path, roots):
        skipped = Counter()
        images = sorted(walk_images(root, skipped))
        summary = ", ".join(f"{n} {suffix}" for suffix, n in skipped.most_common())
        if not images:
            raise ValueError(
                f"{root} holds no images (endings {' '.join(IMAGE_SUFFIXES)}); other files there: {summary or 'none'}"
            )
        logging.getLogger(__name__).info("%d images in %s; skipped: %s", len(images), root, summary or "nothing")
        records += [{"file_name": name, "image_id": len(records) + i} for i, name in enumerate(images)]
    return records


def load_image_list(path: str | Path) -> list[dict]:
    """Read the names of images from a text file, one a line; empty lines do not count.

    Args:
        path: the text file, UTF-8. Relative names are relative to its folder.

    Returns:
        Dicts of "file_name" and "image_id", in the order of the file.

    Raises:
        FileNotFoundError: there is no such file, or images that it names do not exist.
        ValueError: the file is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the list of images {path} does not exist")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    files = [path.parent / name for name in names if name]  # an absolute name replaces the folder
    if not files:
        raise ValueError(f"the list of images {path} is empty")
    missing = [file for file in files if not file.is_file()]
    if missing:
        examples = ", ".join(map(str, missing[:3]))
        raise FileNotFoundError(f"{len(missing)} of the {len(files)} images in {path} do not exist, first {examples}")
    return [{"file_name": str(file), "image_id": i} for i, file in enumerate(files)]


def register_path_datasets(names: Iterable[str]) -> None:
    """Register each ``folder:/path`` and ``list:/path.txt`` among ``names`` under that very name.

    Nothing is read until the dataset is asked for; other names, and names already registered, are left alone.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        if name.startswith(FOLDER_PREFIX):
            root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
            DatasetCatalog.register(name, lambda root=root: load_image_folder(root))
            MetadataCatalog.get(name).set(image_root=str(root))
        elif name.startswith(LIST_PREFIX):
            path = Path(name.removeprefix(LIST_PREFIX)).expanduser()
            DatasetCatalog.register(name, lambda path=path: load_image_list(path))
            MetadataCatalog.get(name).set(image_list=str(path))


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave out a folder that cannot be read


def walk_images(root: Path, skipped: Counter) -> Iterator[str]:
    """Yield the images below a folder in any order; count the other files by suffix."""
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist")
    seen = set()  # of folders, so that links in a circle end
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_raise):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                yield str(Path(folder, name))
            else:
                skipped["hidden" if name.startswith(".") else suffix or "without ending"] += 1
