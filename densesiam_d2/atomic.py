"""Writing a file so that a crash leaves the old one or the complete new one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str | Path, *, many_writers: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete and on disk.

    Args:
        path: where the file is to appear; an existing file there is replaced, missing folders are made.
        many_writers: whether several processes may write this file at the same time. Then each has a temporary file
            of its own; otherwise the temporary file has a fixed name, and what a killed process left is overwritten.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{f'.{uuid.uuid4().hex}' if many_writers else ''}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)  # otherwise a power cut could undo the renaming
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
