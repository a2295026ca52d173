"""What is known of a cell: cell.json in its folder."""

import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

import densesiam_d2
from densesiam_d2.atomic import atomic_write
from densesiam_d2.grid.cells import Cell

__all__ = [
    "State",
    "code_version",
    "conflict",
    "difference",
    "files_of",
    "hardware",
    "portable",
    "read_record",
    "restore",
    "state_of",
    "superfluous",
    "write_record",
]

NAME = "cell.json"

# What every record has from the start of its cell, and what is in its "hardware".
_KEYS = {"state": str, "words": list, "command": str, "needs": dict}
_KEYS |= {"code": str, "hardware": dict, "date": str, "seconds": int | float}
_HARDWARE = {"cpu": str, "cores": int, "gpus": list, "torch": str}

_YAML = (".yaml", ".yml")
_WEIGHTS = (".bin", ".ckpt", ".npz", ".pkl", ".pt", ".pth", ".pth.tar", ".pyth", ".safetensors")
_LABELS = re.compile(r"\b(?:coco:|classes=)([^,'\"()]+)")

_PORTABLE = ("seconds", "code", "hardware", "date")


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
        _check_record(record)
        return record
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no record of a cell ({error}): delete it, and the cell runs anew") from error


def _check_record(record: object) -> None:
    """Check that a record has all that is read of it.

    Raises:
        ValueError: it has not.
    """
    _check_types(record, _KEYS, "it")
    _check_types(record["hardware"], _HARDWARE, "hardware")
    if record["state"] == State.DONE:
        _check_types(record, {"scores": dict}, "it")
        kinds = {name: int | float for name, value in record["scores"].items() if value is not None}
        _check_types(record["scores"], kinds, "scores")


def _check_types(content: object, kinds: Mapping[str, type], what: str) -> None:
    """Check the keys of an object and the types of their values, which must be finite numbers where they are some."""
    if not isinstance(content, dict) or not content.keys() >= kinds.keys():
        raise ValueError(f"{what} must have the keys {', '.join(sorted(kinds))}")
    for key, kind in kinds.items():
        value = content[key]
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} cannot be {value!r}")


def write_record(cell: Cell, record: Mapping) -> None:
    """Write cell.json so that it is the old one or complete at any time."""
    path = cell.folder / NAME
    try:
        with atomic_write(path) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:  # of a full disk, it names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


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
    return None if state in (State.MISSING, State.FAILED) else difference(cell, record, needed)


def difference(cell: Cell, record: Mapping, needed: Mapping[str, Mapping]) -> str | None:
    """Return why the run of a record is not the cell's: another command, file, or run that it needs; else None.

    The arguments are those of :func:`conflict`.
    """
    state = record["state"]
    if record["words"] != cell.fixed_words:
        return f"{cell.name} was {state} with another command: {record['command']}"
    then = record.get("files")  # not in restored records
    now = files_of(cell) if then else {}
    changed = [file for file in now if now[file] != then.get(file, now[file])]
    if changed:
        return f"{cell.name} was {state} with another content of {changed[0]}: name another folder, or restore the file"
    for name, date in record["needs"].items():
        if needed[name].get("date") != date:
            return f"{cell.name} was {state} from a run of {name} that is not there any more"
    return None


def files_of(cell: Cell) -> dict[str, str]:
    """Return a checksum for each yaml, weight file and file of labels that a command names, but for those of the grid.

    The checksum of a yaml is that of its values, with those of its ``_BASE_``, so comments may change. Files of labels
    are those of ``coco:`` and of ``classes=``; label maps and images are not looked at.
    """
    named = [word.partition("?")[0] for word in cell.words]  # weights may have options behind a question mark
    named = [word for word in named if word.endswith((*_YAML, *_WEIGHTS))]
    named += [file for word in cell.words for file in _LABELS.findall(word)]
    words = [os.path.expanduser(word) for word in named]  # noqa: PTH111  not all of them are paths
    words = [word for word in words if not Path(word).is_relative_to(cell.root)]
    files = [Path(word) for word in words if os.path.isfile(word)]  # noqa: PTH113  False for words that are too long
    return {str(file): checksum for file in files if (checksum := _checksum(file, file.stat().st_mtime_ns))}


@functools.cache
def _checksum(file: Path, _changed: int) -> str | None:
    if file.suffix not in _YAML:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    try:
        content = CfgNode.load_yaml_with_base(str(file))
    except Exception:  # it is the command that tells what is wrong with its file
        return None
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def superfluous(cells: Sequence[Cell], records: Mapping[str, Mapping]) -> set[str]:
    """Return the names of cells that only serve others, all of which are done or only serve such themselves.

    They have no scores of their own.

    Args:
        cells: all cells of the grid, each after those that it needs.
        records: their records, by name.
    """
    found: set[str] = set()
    settled_of: dict[str, list[bool]] = {}
    for cell in reversed(cells):
        if not cell.scores and all(settled_of.get(cell.name, [False])):
            found.add(cell.name)
        settled = cell.name in found or records[cell.name].get("state") == State.DONE
        for name in cell.needs:
            settled_of.setdefault(name, []).append(settled)
    return found


def portable(cell: Cell, record: Mapping, cells: Mapping[str, Cell]) -> dict:
    """Return what ``restore`` needs of a finished cell, without scores and without paths of this machine.

    Args:
        cell: the cell.
        record: its record.
        cells: all cells of the grid, by name.
    """
    return {"settings": _settings(cell, cells), "scores": {}, **{key: record[key] for key in _PORTABLE}}


def restore(cells: Sequence[Cell], table: Mapping) -> list[str]:
    """Write the records of cells that a table's JSON has as done and whose folders hold no record.

    Only scores are restored, no files, so cells without scores (a pretraining) run anew where another cell needs them.

    Args:
        cells: all cells of the grid.
        table: what ``Table.to_json`` returned, perhaps on another machine.

    Returns:
        The names of the restored cells.

    Raises:
        ValueError: the JSON is not that of a table, or a cell, or one it needs, had other settings there.
    """
    entries = table.get("cells") if isinstance(table, dict) else None
    if not isinstance(entries, dict):
        raise ValueError('it has no "cells", which `grid table --json` writes')
    found, by_name = [], {cell.name: cell for cell in cells}
    for cell in cells:
        known = entries.get(cell.name)
        if known is None or not cell.scores or state_of(cell) != State.MISSING:
            continue
        try:
            _check_types(known, {"settings": str}, "it")
            record = {key: known.get(key) for key in ("scores", *_PORTABLE)}
            record |= {"state": State.DONE, "words": cell.fixed_words, "command": cell.command, "needs": {}}
            _check_record(record)
        except ValueError as error:
            raise ValueError(f"its cell {cell.name} is not as `grid table --json` writes it: {error}") from error
        if known["settings"] != _settings(cell, by_name):
            raise ValueError(f"{cell.name} had other settings there, paths aside: give --set as for that table")
        if record["scores"].keys() >= {score.name for score in cell.scores}:
            found.append((cell, {**record, "restored": True}))
    for cell, record in found:
        write_record(cell, record)
    return [cell.name for cell, _ in found]


def _settings(cell: Cell, cells: Mapping[str, Cell]) -> str:
    """Return a checksum of the words without paths in the commands of a cell and of those that it needs."""
    words = [word for word in cell.words if "/" not in word] + [_settings(cells[name], cells) for name in cell.needs]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


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
