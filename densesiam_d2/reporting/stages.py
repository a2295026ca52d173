"""Stages of a long job. Each stage is one command of ``train_net.py`` that runs once; later calls reuse its results."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import densesiam_d2
from densesiam_d2.engine.setup import load_config
from densesiam_d2.processes import end_with_parent

__all__ = ["ROOT", "Stage", "StageError", "run_stage"]

ROOT = Path(densesiam_d2.__file__).resolve().parents[1]
_RECORD = "stage.json"
_LOG = "stage.log"
_SECONDS_BETWEEN_LINES = 10.0
_TRAINING = re.compile(r"eta: (?P<eta>\S+)\s+iter: (?P<done>\d+)\s+total_loss: (?P<loss>\S+)")
_TESTING = re.compile(r"Inference done (?P<done>\d+)/(?P<total>\d+)\..*ETA=(?P<eta>\S+)")


class StageError(RuntimeError):
    """A stage cannot run or has failed; the message names the stage or the file, and the reason."""


@dataclass(frozen=True)
class Stage:
    """One run of ``train_net.py``.

    Attributes:
        name: name of the stage and of its folder.
        title: description of what it does.
        config: path of the yaml, relative to the project's root.
        output: its OUTPUT_DIR.
        weights: MODEL.WEIGHTS: a file, a name such as "torchvision://mobilenet_v2", "" for random initialisation, None
            for the value in the yaml.
        product: the file in ``output`` that later stages need.
        opts: further config keys and values.
    """

    name: str
    title: str
    config: str
    output: Path
    weights: Path | str | None = None
    product: str = "results.json"
    opts: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The words of the command after ``python``."""
        words = ["train_net.py", "--config-file", self.config]
        words += [] if self.weights is None else ["MODEL.WEIGHTS", _relative(self.weights)]
        return [*words, *self.opts, "OUTPUT_DIR", _relative(self.output)]

    @property
    def command(self) -> str:
        """The command line to type in the project's root."""
        return shlex.join(["python", *self.words])

    @property
    def max_iter(self) -> int:
        """Number of training iterations."""
        return load_config(str(ROOT / self.config), list(self.opts)).SOLVER.MAX_ITER


def _relative(path: Path | str) -> str:
    if isinstance(path, str):
        return path
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run_stage(stage: Stage, *, position: str, overwrite: bool = False) -> dict:
    """Run a stage, unless its folder holds the result of the same command, config and weights.

    Args:
        stage: the stage.
        position: text to print before its title, such as "[2/6]".
        overwrite: run the stage even if its folder holds the result.

    Returns:
        The stage's record: "command", "seconds", "finished" (local time), and the hashes "config" and "weights".

    Raises:
        StageError: the command failed, the weights are missing, or the folder holds files that no stage wrote.
    """
    made_from = {"command": stage.command, "config": _config_hash(stage), "weights": _file_hash(stage.weights)}
    record = _read_record(stage.output)
    same = {key: record.get(key) for key in made_from} == made_from
    if same and "seconds" in record and (stage.output / stage.product).is_file() and not overwrite:
        print(f"{position} {stage.title}: already done at {record['finished']}, used again", flush=True)
        return record
    if stage.output.is_dir() and any(stage.output.iterdir()):
        if not record:
            raise StageError(f"{stage.output} holds files that are not of this stage: choose another output folder.")
        shutil.rmtree(stage.output)
    stage.output.mkdir(parents=True, exist_ok=True)
    (stage.output / _RECORD).write_text(json.dumps(made_from, indent=2))  # marks the folder as written by a stage

    print(f"{position} {stage.title}\n      $ {stage.command}", flush=True)
    start = time.perf_counter()
    _run_command(stage)
    seconds = time.perf_counter() - start
    if not (stage.output / stage.product).is_file():
        raise StageError(f"{stage.title}: the command ended well but left no {stage.output / stage.product}.")
    record = {**made_from, "seconds": seconds, "finished": time.strftime("%Y-%m-%d %H:%M")}
    (stage.output / _RECORD).write_text(json.dumps(record, indent=2))
    print(f"      done in {seconds:.0f} s", flush=True)
    return record


def _run_command(stage: Stage) -> None:
    """Run the command, write its output to a log file, and print a line of progress every ten seconds or less often."""
    log, tail, last_line = stage.output / _LOG, deque(maxlen=25), time.perf_counter()
    total = stage.max_iter
    command = [sys.executable, *stage.words]
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent,  # or it would go on to write into a folder that the next try empties
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            progress = _progress(line, total)
            if progress and time.perf_counter() - last_line > _SECONDS_BETWEEN_LINES:
                print(f"      {progress}", flush=True)
                last_line = time.perf_counter()
    if process.returncode:
        raise StageError(
            f"{stage.title}: the command failed with status {process.returncode}. The end of {log}:\n{''.join(tail)}"
        )


def _progress(line: str, total: int) -> str | None:
    """Turn a line of detectron2's log into a line of progress; return None if it is not about progress."""
    if found := _TRAINING.search(line):
        return f"iteration {int(found['done']) + 1} of {total}, loss {found['loss']}, {found['eta']} left"
    if found := _TESTING.search(line):
        return f"evaluated {found['done']} of {found['total']} images, {found['eta']} left"
    return None


def _config_hash(stage: Stage) -> str:
    return hashlib.sha256(load_config(str(ROOT / stage.config), list(stage.opts)).dump().encode()).hexdigest()[:16]


def _file_hash(path: Path | str | None) -> str | None:
    if not path or "://" in str(path):  # random weights, or the name of published ones, which the command holds
        return None
    if not Path(path).is_file():
        raise StageError(f"{path} is missing; it is what this stage starts from.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _read_record(folder: Path) -> dict:
    path = folder / _RECORD
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise StageError(f"{path} is damaged ({error}): delete {folder}") from error
