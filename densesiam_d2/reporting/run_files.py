"""Read what a run has written into its OUTPUT_DIR, which may be incomplete because the run is still writing."""

import argparse
import ast
import functools
import json
import re
import shlex
import time
from operator import attrgetter
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg

from densesiam_d2.checkpoint.resuming import TAG, own_checkpoints
from densesiam_d2.config import add_densesiam_config, all_keys
from densesiam_d2.data.quarantine import read_quarantine
from densesiam_d2.engine.setup import load_config
from densesiam_d2.reporting.curves import Curve, read_metrics

__all__ = ["RunFiles", "config_differences"]

_FILES = ("config.yaml", "metrics.json", "log.txt", "results.json")
_STARTED = re.compile(r"Command line arguments: (Namespace\(.*\))$")


class RunFiles:
    """The files of a run.

    Attributes:
        folder: OUTPUT_DIR.
        problems: files that exist but cannot be read, each in one line.
    """

    def __init__(self, folder: Path):
        """Check that there is a run.

        Raises:
            FileNotFoundError: the folder does not exist, or holds no file of a run.
        """
        if not any((folder / name).is_file() for name in _FILES):
            raise FileNotFoundError(f"{folder} holds no run: none of {', '.join(_FILES)} is in it")
        if not any((folder / name).is_file() for name in _FILES[:-1]):
            try:  # low_shot and compare write a results.json of their own, and a report.html
                _read_results(folder / "results.json")
            except ValueError as error:
                raise FileNotFoundError(f"{folder} holds no run: {error}") from None
        self.folder, self.problems = folder, []

    @functools.cached_property
    def metrics(self) -> dict[str, Curve]:
        """Name -> curve, see :func:`read_metrics`."""
        strange = []
        metrics = read_metrics(self.folder, strange)
        self._note(self.folder / "metrics.json", strange)
        if self.cfg is None or not self.cfg.SOLVER.MAX_ITER:
            return metrics
        # The evaluation at the end is logged with one iteration more than there were.
        end = self.cfg.SOLVER.MAX_ITER
        return {name: (np.minimum(iterations, end), values) for name, (iterations, values) in metrics.items()}

    @functools.cached_property
    def cfg(self) -> CfgNode | None:
        """The whole config of the run; None without a readable ``config.yaml``."""
        path = self.folder / "config.yaml"
        return self._try(lambda: load_config(str(path))) if path.is_file() else None

    @functools.cached_property
    def results(self) -> dict:
        """The scores in ``results.json``: data set -> task -> score -> value; {} without a readable file."""
        path = self.folder / "results.json"
        return (self._try(lambda: _read_results(path)) if path.is_file() else None) or {}

    @functools.cached_property
    def set_aside(self) -> list[dict]:
        """Entries of ``quarantine.jsonl``: "file_name" and "reason"."""
        path, strange = self.folder / "quarantine.jsonl", []
        entries = read_quarantine(path, strange)
        self._note(path, strange)
        return entries

    @functools.cached_property
    def weights(self) -> list[tuple[Path, float, str]]:
        """Checkpoints and exported backbones in the order of their dates: file, MiB, and the local time of writing."""
        found = []
        for path in [*own_checkpoints(self.folder), *self.folder.glob("backbone*.*")]:
            try:
                found.append((path, path.stat()))
            except FileNotFoundError:  # the run has just deleted an old checkpoint
                continue
        found.sort(key=lambda entry: entry[1].st_mtime)
        return [
            (path, stat.st_size / 2**20, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.st_mtime)))
            for path, stat in found
        ]

    @functools.cached_property
    def newest(self) -> str:
        """Name of the checkpoint that ``--resume`` goes on from; "" if there is none."""
        path = self.folder / TAG
        return path.read_text(errors="replace").strip() if path.is_file() else ""

    @functools.cached_property
    def start(self) -> argparse.Namespace | None:
        """The command line of the last training, or else evaluation, as ``log.txt`` has it; None if there is none."""
        path, starts = self.folder / "log.txt", []
        if path.is_file():
            with path.open(errors="replace") as file:
                starts = [_namespace(found[1]) for line in file if (found := _STARTED.search(line.rstrip("\n")))]
        starts = [start for start in starts if start is not None]
        return next((start for start in reversed(starts) if not start.eval_only), starts[-1] if starts else None)

    @property
    def iterations(self) -> int:
        """Number of iterations until the last one whose loss was logged."""
        return int(self.metrics["total_loss"][0][-1]) if "total_loss" in self.metrics else 0

    @property
    def seeds(self) -> dict | None:
        """The content of ``results.json`` if this is the folder of a run with ``--seeds``, else None."""
        return self.results if "seeds" in self.results else None

    @property
    def evaluated_only(self) -> bool:
        """Whether nothing was trained into this folder."""
        return self.start is not None and self.start.eval_only

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end, and no newer checkpoint says that it went on."""
        return (self.newest or "model_final.pth") == "model_final.pth" and (self.folder / "model_final.pth").is_file()

    @property
    def last_written(self) -> float | None:
        """When ``metrics.json`` was written last, in seconds since the epoch; None if there is no such file."""
        path = self.folder / "metrics.json"
        return path.stat().st_mtime if path.is_file() else None

    def command(self) -> str | None:
        """Return the command that does the same again, into ``<OUTPUT_DIR>_again``; None if it is not known."""
        if self.start is None:
            return None
        words = self.train_net(self.start.config_file)
        words += ["--eval-only"] if self.start.eval_only else []
        pairs = zip(self.start.opts[::2], self.start.opts[1::2], strict=False)
        words += [word for key, value in pairs if key != "OUTPUT_DIR" for word in (key, str(value))]
        return shlex.join([*words, "OUTPUT_DIR", f"{self.folder}_again"])

    def train_net(self, config_file: str) -> list[str]:
        """Return the words that call train_net.py with a config file and this run's number of processes."""
        words = ["python", "train_net.py", "--config-file", config_file]
        for name in ("num_gpus", "num_machines"):
            if getattr(self.start, name, 1) != 1:
                words += [f"--{name.replace('_', '-')}", str(getattr(self.start, name))]
        return words

    def _note(self, path: Path, strange: list[str]) -> None:
        if strange:
            self.problems.append(f"{path}, {len(strange)} lines or values in it; the first: {strange[0]}")

    def _try(self, read):
        try:
            return read()
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
            return None


def _read_results(path: Path) -> dict:
    """Read ``results.json``, and check that it has what the report goes through."""
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    scores = results.get("scores") if isinstance(results, dict) and "seeds" in results else results
    if not isinstance(scores, dict) or not all(map(_is_of_a_set, scores.values())):
        raise ValueError(f"{path} holds no scores of data sets, but {str(results)[:60]}")
    return results


def _is_of_a_set(tasks) -> bool:
    kinds = {"protocol": dict, "absent_classes": list}
    return isinstance(tasks, dict) and all(isinstance(tasks.get(key, kind()), kind) for key, kind in kinds.items())


def _namespace(text: str) -> argparse.Namespace | None:
    """Return the namespace that was printed; None if the line is cut or holds more than plain values."""
    try:
        call = ast.parse(text, mode="eval").body
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        return None
    return argparse.Namespace(**values) if {"config_file", "eval_only", "opts"} <= set(values) else None


def config_differences(cfg: CfgNode, base: CfgNode | None = None) -> list[tuple[str, str, str]]:
    """Return the keys whose values differ, sorted: name, value in ``base`` and value in ``cfg``.

    Args:
        cfg: the config of a run.
        base: what to compare with; None stands for the defaults of detectron2 and this project.
    """
    if base is None:
        base = get_cfg()
        add_densesiam_config(base)
    keys = [key for key in sorted(all_keys(cfg)) if not isinstance(attrgetter(key)(cfg), CfgNode)]
    values = [(key, _as_in_yaml(attrgetter(key)(base)), _as_in_yaml(attrgetter(key)(cfg))) for key in keys]
    return [(key, str(old), str(new)) for key, old, new in values if old != new]


def _as_in_yaml(value):
    """Return a value with lists for tuples, which yaml files do not have, and with '""' for an empty text."""
    return (
        [_as_in_yaml(item) for item in value] if isinstance(value, list | tuple) else ('""' if value == "" else value)
    )
