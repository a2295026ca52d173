"""Run the cells of a grid that are not done, several at a time, together with other calls on the same folder."""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from densesiam_d2.engine.run_lock import InUseError, lock_file
from densesiam_d2.engine.signals import handle_stop_signals
from densesiam_d2.grid.cells import Cell
from densesiam_d2.grid.progress import duration, time_left
from densesiam_d2.grid.records import (
    State,
    code_version,
    conflict,
    difference,
    files_of,
    hardware,
    read_record,
    superfluous,
    write_record,
)
from densesiam_d2.processes import PREEMPTED, end_with_parent

__all__ = ["run_cells", "waiting"]

LOG = "log.txt"
_POLL_SECONDS = 0.2
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_TO_STOP = 120.0

_print = functools.partial(print, flush=True)


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    only: Collection[str] = (),
    show: Callable[[str], None] = _print,
    ended: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run all cells that are not done; calls on the same folder at the same time share the work.

    Cells without scores, such as a pretraining, run only if a cell that needs them is not done.

    Each cell runs in the working directory, its output goes to log.txt in its folder. cell.json there holds "state"
    (see ``State``), "command", "axes", "seed", "code", "hardware", "date", "seconds" of all attempts, "exit_code",
    "cpu_seconds" and "peak_mib" of the last attempt, and "scores". The peak is the resident memory of the command's
    largest process, or of this process where that is more, because Linux counts from the fork on. A failed cell is run
    again by the next call, a stopped one goes on if its command can (``train_net.py --resume auto``).

    Args:
        cells: all cells of the grid; those that a cell needs stand before it.
        jobs: number of cells at a time; without OMP_NUM_THREADS each gets its share of the cores.
        only: names of stages; empty means all.
        show: prints a line.
        ended: called after each cell that has ended here, whatever its state.

    Returns:
        The cells that are not done, by name, with the reason.

    Raises:
        ValueError: a folder holds the result of another command.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1 asked to stop; the commands have been stopped.
    """
    return _Run(cells, jobs, only, show, ended).run()


def waiting(cells: Sequence[Cell], only: Collection[str] = ()) -> list[Cell]:
    """Return the cells that run_cells would run.

    Args:
        cells: all cells of the grid.
        only: names of stages; empty means all.

    Raises:
        ValueError: a folder holds the result of another command.
    """
    names = _Run(cells, 1, only, print, lambda: None).waiting()
    return [cell for cell in cells if cell.name in names]


@dataclasses.dataclass
class _Job:
    """A running cell: its process, its open lock, its record, and when it began (of ``time.monotonic``)."""

    cell: Cell
    process: subprocess.Popen
    lock: TextIO
    record: dict
    began: float


class _Run:
    def __init__(
        self,
        cells: Sequence[Cell],
        jobs: int,
        only: Collection[str],
        show: Callable[[str], None],
        ended: Callable[[], None],
    ):
        self._cells = {cell.name: cell for cell in cells}
        self._jobs, self._show, self._ended = jobs, show, ended
        self._left = [name for name, cell in self._cells.items() if not only or cell.stage in only]
        self._total = len(self._left)
        self._running: dict[str, _Job] = {}
        self._elsewhere: set[str] = set()  # cells that other calls run
        self._records = {name: read_record(cell) for name, cell in self._cells.items()}
        self._failed_before = {n: r["date"] for n, r in self._records.items() if r.get("state") == State.FAILED}
        self._not_done: dict[str, str] = {}
        self._last_line = time.monotonic()
        self._stopping = False

    def waiting(self) -> list[str]:
        """Return the names of the cells that have to run."""
        conflicts = [conflict(self._cells[name], self._records[name], self._records) for name in self._left]
        if any(conflicts):
            lines = "\n".join(f"  {text}" for text in conflicts if text)
            raise ValueError(f"these results are not of this grid: delete their folders, or name another one\n{lines}")
        skip = superfluous(list(self._cells.values()), self._records)
        working = [c for n, c in self._cells.items() if n not in skip and self._records[n].get("state") != State.DONE]
        self._without_files = {n for c in working for n in c.needs if self._records[n].get("restored")}
        return [n for n in self._left if n not in skip and not self._done(n)]

    def run(self) -> dict[str, str]:
        self._left = self.waiting()
        self._line(f"{len(self._left)} to run")
        with handle_stop_signals(self._ask_to_stop):
            try:
                while (self._left or self._running) and not self._stopping:
                    self._collect()
                    self._start_some()
                    if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
                        now = time.monotonic()
                        parts = [f"{name} for {duration(now - job.began)}" for name, job in self._running.items()]
                        self._line(", ".join(parts) or "waiting for other calls")
                    time.sleep(_POLL_SECONDS)
                if self._stopping:
                    raise KeyboardInterrupt
            finally:
                self._stop_all()
        return self._not_done

    def _done(self, name: str) -> bool:
        """Tell whether a cell is done; one that was restored without files is not, if another needs its files."""
        record = self._records[name]
        return record.get("state") == State.DONE and not (name in self._without_files and record.get("restored"))

    def _line(self, text: str) -> None:
        """Print a line with the number of finished cells and the time left."""
        here = [self._cells[name] for name in self._left if name not in self._elsewhere]
        began = [(job.cell, time.monotonic() - job.began) for job in self._running.values()]
        left = time_left(here, began, self._records, self._cells, workers=self._jobs + len(self._elsewhere))
        busy = f"{len(self._running)} running" + (f", {len(self._elsewhere)} elsewhere" if self._elsewhere else "")
        finished = self._total - len(self._left) - len(self._running)
        self._show(f"[{finished}/{self._total}] {text} ({busy}, {left} left)")
        self._last_line = time.monotonic()

    def _start_some(self) -> None:
        """Go through the cells that are left: start what can be started, and drop what others have finished."""
        self._elsewhere.clear()
        for name in list(self._left):
            if len(self._running) == self._jobs or self._stopping:
                return
            cell = self._cells[name]
            if self._settled(cell) or not self._ready(cell):
                continue
            try:
                lock = lock_file(cell.root / ".locks" / f"{name}.lock")
            except InUseError:
                self._elsewhere.add(name)
                continue
            if self._settled(cell):  # between the two looks another call may have run it
                lock.close()
            else:
                self._left.remove(name)
                self._start(cell, lock)

    def _settled(self, cell: Cell) -> bool:
        """Tell whether another call has finished a cell, and drop it then."""
        record = self._records[cell.name] = read_record(cell)
        new_failure = record.get("state") == State.FAILED and record["date"] != self._failed_before.get(cell.name)
        if self._done(cell.name):
            self._left.remove(cell.name)
            needed = {name: read_record(self._cells[name]) for name in cell.needs}  # perhaps newer than known here
            if other := difference(cell, record, needed):
                self._give_up(cell, other)
            else:
                self._line(f"{cell.name}: done by another call")
        elif new_failure:
            self._left.remove(cell.name)
            self._give_up(cell, f"failed in another call: {record['error']}")
        return cell.name not in self._left

    def _ready(self, cell: Cell) -> bool:
        """Tell whether what a cell needs is done; give it up if that will not be."""
        for name in cell.needs:
            if self._done(name) and name not in self._not_done:
                continue
            if name not in self._left and name not in self._running:
                reason = f"it needs {name}, which " + ("failed" if name in self._not_done else "is not done")
                self._left.remove(cell.name)
                self._give_up(cell, reason)
            return False
        return True

    def _give_up(self, cell: Cell, reason: str) -> None:
        self._not_done[cell.name] = reason
        self._line(f"{cell.name}: {reason}")

    def _start(self, cell: Cell, lock: TextIO) -> None:
        earlier = self._records[cell.name]
        other = difference(cell, earlier, self._records) if earlier else None
        if other and earlier["state"] not in (State.FAILED, State.DONE):
            lock.close()
            self._give_up(cell, other)
            return
        if other or earlier.get("restored"):  # a failed cell of another command, or a record without files
            shutil.rmtree(cell.folder.resolve())  # the folder may be a link
            earlier = {}
        record = {
            "state": State.STARTED,
            "name": cell.name,
            "stage": cell.stage,
            "axes": dict(cell.axes),
            "seed": cell.axes.get("seed"),
            "command": cell.command,
            "words": cell.fixed_words,
            "files": files_of(cell),
            "needs": {name: self._records[name]["date"] for name in cell.needs},
            "code": code_version(),
            "hardware": hardware(),
            "date": _now(),
            "seconds": earlier.get("seconds", 0.0),
        }
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_record(cell, record)
        words = [sys.executable if word == "python" else word for word in cell.words]
        threads = {"OMP_NUM_THREADS": str(max(1, hardware()["cores"] // self._jobs))} if self._jobs > 1 else {}
        try:
            with (cell.folder / LOG).open("a") as log:
                log.write(f"$ {cell.command}\n")
                log.flush()
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**threads, **os.environ},
                    start_new_session=True,  # Ctrl-C reaches this process only, which then asks them to stop
                    preexec_fn=end_with_parent,
                )
        except OSError as error:
            self._failed(cell, record, str(error))
            lock.close()
            return
        self._running[cell.name] = _Job(cell, process, lock, record, time.monotonic())
        self._line(f"{cell.name}: started")

    def _collect(self) -> None:
        """Write the records of the processes that have ended."""
        for name, job in list(self._running.items()):
            if self._stopping and _processes_of(job.process.pid):
                continue  # perhaps the command's shell has ended, and its training still saves
            pid, status, usage = os.wait4(job.process.pid, os.WNOHANG)
            if pid:
                job.process.returncode = os.waitstatus_to_exitcode(status)
                del self._running[name]
                self._finish(job, usage)
                job.lock.close()

    def _finish(self, job: _Job, usage) -> None:
        cell, record, code = job.cell, job.record, job.process.returncode
        kib = usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
        record.update(
            date=_now(),
            seconds=round(record["seconds"] + time.monotonic() - job.began, 2),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
            peak_mib=kib // 1024,
            exit_code=code,
        )
        if code == PREEMPTED or (code and self._stopping):
            self._write(cell, {**record, "state": State.STOPPED})
            self._give_up(cell, "stopped by a signal; the next call goes on with it")
        elif code:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            self._failed(cell, record, f"{how}: {_last_line(cell.folder / LOG)}")
        else:
            try:
                scores = {score.name: score.read(cell.folder) for score in cell.scores}
            except ValueError as error:
                self._failed(cell, record, str(error))
                return
            self._write(cell, {**record, "state": State.DONE, "scores": scores})
            numbers = "".join(f", {name} {value:.4g}" for name, value in scores.items() if value is not None)
            self._line(f"{cell.name}: done in {duration(record['seconds'])}{numbers}")

    def _failed(self, cell: Cell, record: dict, error: str) -> None:
        self._write(cell, {**record, "date": _now(), "state": State.FAILED, "error": error})
        self._give_up(cell, f"failed, {error} (see {cell.folder / LOG})")

    def _write(self, cell: Cell, record: dict) -> None:
        write_record(cell, record)
        self._records[cell.name] = record
        try:
            self._ended()
        except OSError as error:  # of a page about the cells, which must not stop them
            self._line(f"after {cell.name}: {error}")

    def _stop_all(self) -> None:
        """Ask the running commands to stop, which train_net.py does after a save; kill what takes too long.

        A command's first process is asked, not its children, such as the workers that a training needs until it has
        saved. A shell ends without its children: they are asked then, one after the other, because a training that
        is piped into another command needs that one until it has saved.
        """
        self._stopping, end, problem = True, time.monotonic() + _SECONDS_TO_STOP, None
        asked = {job.process.pid for job in self._running.values()}
        for pid in asked:
            os.kill(pid, signal.SIGTERM)
        while self._running:
            try:
                for job in self._running.values():
                    parents = _processes_of(job.process.pid)
                    first = min((pid for pid, parent in parents.items() if parent not in parents), default=None)
                    if first and first not in asked:
                        asked.add(first)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(first, signal.SIGTERM)
                self._collect()
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:  # a second Ctrl-C
                end = 0.0
            except OSError as error:  # such as a full disk: the others must be waited for all the same
                problem = error
            if time.monotonic() > end:
                for job in self._running.values():
                    os.killpg(job.process.pid, signal.SIGKILL)
        if problem:
            raise problem

    def _ask_to_stop(self, number: int) -> None:
        """React to a signal, in the main loop: an exception could come between a process and the note of it."""
        self._stopping = True


def _processes_of(group: int) -> dict[int, int]:
    """Return the processes of a process group that have not ended, and their parents; {} where there is no /proc."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent, its_group = file.read_bytes().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state not in b"ZX":
                parents[int(file.parent.name)] = int(parent)
    return parents


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    if not log.is_file():
        return "the command has removed its log"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing in the log"
