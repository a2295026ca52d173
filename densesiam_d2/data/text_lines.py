"""Read text files that users write, such as lists of images and class names."""

import codecs
from pathlib import Path

__all__ = ["read_lines"]


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8; the message names the line.
    """
    path = Path(path)
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    wrong = data.find(b"\0")  # a zero byte means UTF-16, most of which would decode as UTF-8
    if wrong < 0:
        try:
            return data.decode().splitlines()
        except UnicodeDecodeError as error:
            wrong = error.start
    line = data[:wrong].count(b"\n") + 1
    raise ValueError(f"{path}, line {line}: not UTF-8, which lists must be: save the file as UTF-8")
