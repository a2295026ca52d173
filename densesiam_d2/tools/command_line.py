"""What the command lines of all tools do with an error of the user and with Ctrl-C."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from densesiam_d2.processes import PREEMPTED

__all__ = ["check_output_file", "naming", "tool"]


@contextlib.contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Inside the ``with`` block, put a source before the message of a ValueError that does not begin with it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(source)) else f"{source}: {text}") from error


def check_output_file(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        ValueError: a folder has this name, or the file's folder does not exist or cannot be written to.
    """
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: name a file in a folder that exists")


def tool(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Decorate the ``main(argv)`` of a tool so that it returns the exit status.

    Wrong usage, data, files or weights (ValueError, OSError), or a package that is not installed (ImportError), give
    one line that begins with the tool's name, and status 2. Ctrl-C gives status 75, as a stopped training does.
    Otherwise the status is what ``main`` returns, with 0 for None.
    """
    name = Path(main.__code__.co_filename).stem

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except (ValueError, OSError, ImportError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{name}: stopped; run the same command again", file=sys.stderr)
            return PREEMPTED

    return run
