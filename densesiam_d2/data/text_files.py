"""Text files that people write: lists of images, class names."""

import codecs
from pathlib import Path

__all__ = ["read_lines"]


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8; the message names the line.
    """
    path = Path(path)
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8, which lists must be: save the file as UTF-8") from None
