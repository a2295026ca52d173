"""List the files below a folder: sorted, with links followed, and without hidden ones."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["walk_files"]


def walk_files(root: Path, suffixes: Sequence[str], skipped: Counter) -> Iterator[str]:
    """Yield the files below a folder, sorted by their whole paths; count the other files by suffix in ``skipped``.

    Links are followed; hidden files and folders are left out. Only the current folder and its parents are in memory.

    Args:
        root: the folder.
        suffixes: endings of the files, in lower case; those of the files may have any case.
        skipped: gets the counts.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a folder below it cannot be read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist")
    yield from _walk(str(root), suffixes, skipped, set())


def _walk(folder: str, suffixes: Sequence[str], skipped: Counter, seen: set) -> Iterator[str]:
    status = os.stat(folder)  # noqa: PTH116
    if (status.st_dev, status.st_ino) in seen:  # otherwise links in a circle would never end
        skipped["folders linked again"] += 1
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        # A folder's name gets a slash at its end, so that the order is that of the whole paths: "a.jpg" before "a/".
        found = sorted((entry.name + "/" * _is_folder(entry), entry.path) for entry in entries)
    for name, path in found:
        if name.endswith("/"):
            if not name.startswith("."):
                yield from _walk(path, suffixes, skipped, seen)
            continue
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix in suffixes and not name.startswith("."):
            yield path
        else:
            skipped["hidden" if name.startswith(".") else suffix or "without ending"] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle is treated as a file that cannot be read
        return False
