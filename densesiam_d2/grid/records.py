"""What is known of a cell: cell.json in its folder."""

import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import densesiam_d2
from densesiam_d2.atomic import atomic_write
from densesiam_d2.grid.cells import Cell

__all__ = ["State", "code_version", "conflict", "hardware", "read_record", "state_of", "write_record"]

NAME = "cell.json"

# What every record has from the start of its cell.
_KEYS = {"state", "words", "command", "needs", "code", "hardware", "date", "seconds"}


class State:
    """How far a cell is, as "state" in its cell.json says."""

    MISSING = "missing"  # never started
    STARTED = "started"  # running, or its whole machine went down
    STOPPED = "stopped"  # by a signal; the next call goes on with it
    FAILED = "failed"
    DONE = "done"


def read_record(cell: Cell) -> dict:
    """Return the content of cell.json; {} for a cell that was never started.

    Raises:
        ValueError: the file is no record.
    """
    path = cell.folder / NAME
    try:
        list(cell.folder.iterdir())  # makes a network file system ask for files of other machines
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or not record.keys() >= _KEYS:
            raise ValueError(f"it must have the keys {', '.join(sorted(_KEYS))}")
        return record
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no record of a cell ({error}): delete it, and the cell runs anew") from error


def write_record(cell: Cell, record: Mapping) -> None:
    """Write cell.json so that it is the old one or complete at any time."""
    with atomic_write(cell.folder / NAME) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


def state_of(cell: Cell) -> str:
    """Return how far a cell is."""
    return read_record(cell).get("state", State.MISSING)


def conflict(cell: Cell, record: Mapping, needed: Mapping[str, Mapping]) -> str | None:
    """Return why what is in a cell's folder is not of this cell; None if it is, or if the folder may be emptied.

    Args:
        cell: the cell.
        record: its record.
        needed: the records of the grid's cells, by name.
    """
    state = record.get("state", State.MISSING)
    if state in (State.MISSING, State.FAILED):
        return None
    if record["words"] != cell.fixed_words:
        return f"{cell.name} was {state} with another command: {record['command']}"
    for name, date in record["needs"].items():
        if needed[name].get("date") != date:
            return f"{cell.name} was {state} from a run of {name} that is not there any more"
    return None


def code_version() -> str:
    """Return the git commit of this package, with "changed" if files differ from it; without git its version."""
    folder = Path(densesiam_d2.__file__).resolve().parents[1]
    commit = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    if commit:
        return commit + (", changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    return densesiam_d2.__version__


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def hardware() -> dict:
    """Return "cpu" (model), "cores" that this process may use, "gpus" (names) and "torch" (version)."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    if torch.cuda.is_available():  # asked in another process, which leaves no memory of the GPU in use
        code = "import torch\nfor i in range(torch.cuda.device_count()): print(torch.cuda.get_device_name(i))"
        gpus = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores,
        "gpus": gpus,
        "torch": torch.__version__,
    }
