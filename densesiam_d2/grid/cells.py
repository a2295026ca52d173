"""A cell of a grid: one command with a folder of its own, and the scores that it leaves there."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Cell", "Score", "check_folder_name"]


def check_folder_name(name: str, what: str) -> None:
    """Check that a part of a cell's name can be the name of a folder.

    Args:
        name: the part.
        what: what it is the name of, for the message.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(
            f"{what}: {name!r} must be letters, digits and . + - _, and begin with no dot (it names a folder)"
        )


@dataclass(frozen=True)
class Score:
    """One number in a JSON file that a cell writes.

    Attributes:
        name: its column in the table.
        file: the JSON file, relative to the cell's folder.
        path: keys from the outside to the inside, with dots between them. ``*`` stands for the only key of an object,
            whatever its name, such as a dataset's.
    """

    name: str
    file: str
    path: str

    def read(self, folder: Path) -> float | None:
        """Return the number in the file of a cell's folder; None where the file holds null, NaN or Infinity.

        Raises:
            ValueError: the file or the number is not there.
        """
        path = folder / self.file
        try:
            value = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"score {self.name}: {path} cannot be read: {error}") from error
        for key in self.path.split("."):
            keys = list(value) if isinstance(value, dict) else []
            if key == "*" and len(keys) == 1:
                key = keys[0]
            if key not in keys:
                raise ValueError(f"score {self.name}: {path} has no {self.path}: {key} is not one of {keys}")
            value = value[key]
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"score {self.name}: {self.path} in {path} is no number")
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Cell:
    """One command of the grid.

    Attributes:
        name: unique in the grid, and the path of the cell's folder below ``root``, such as "probe/simsiam/seed_0".
        stage: which part of the grid it is; cells of one stage take about the same time for the same ``work``.
        words: the words of the command. The word "python" is replaced by the interpreter that runs the grid.
        root: the grid's folder, absolute.
        axes: what distinguishes the cell, such as {"method": "simsiam", "seed": 0}.
        needs: names of the cells that must be done before.
        scores: the numbers to read when the command has ended; without one of them the cell has failed.
        work: how long the cell takes beside the others of its stage, such as its number of iterations.
    """

    name: str
    stage: str
    words: tuple[str, ...]
    root: Path
    axes: Mapping[str, str | int | float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    work: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder of the command's output, of log.txt and of cell.json."""
        return self.root / self.name

    @property
    def command(self) -> str:
        """The command line, to be typed in the working directory of the grid."""
        return shlex.join(self.words)

    @property
    def fixed_words(self) -> list[str]:
        """The command's words without the path of the grid's folder, which may move."""
        root = re.compile(re.escape(str(self.root)) + r"(?![\w.-])")  # not in the path of a folder whose name is longer
        return [root.sub("GRID", word) for word in self.words]
