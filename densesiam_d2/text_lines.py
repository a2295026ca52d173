"""Read text files: lists that users write, and JSON lines that runs write; and make texts safe to print."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["counted", "listed", "printable", "read_json_lines", "read_lines"]


def printable(text: str) -> str:
    """Escape what terminals and log files refuse or obey: bytes that are not UTF-8, line breaks, terminal codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Return "a, b, c", of more than ``limit`` names "a, b, c and 35 more", of no names "none"."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def counted(kinds: Counter, most: int | None = None) -> str:
    """Return numbers and kinds such as "12 .txt, 3 hidden", the ``most`` frequent ones, made safe to print."""
    return printable(", ".join(f"{number} {kind}" for kind, number in kinds.most_common(most)))


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


def read_json_lines(path: Path, problems: list[str] | None = None) -> list[dict]:
    """Return the objects of a file that has one in each line; [] if there is no such file.

    Lines that are no object are left out: a killed run may leave an unfinished one, and so may a run that is writing.

    Args:
        path: the file.
        problems: gets one text for each line that is no object, except for the last one if it is unfinished.
    """
    objects, text = [], path.read_text(errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        elif problems is not None and not (number == len(lines) and line.startswith("{") and not text.endswith("\n")):
            problems.append(f"line {number} is no JSON object")
    return objects
