"""Measuring A against B in one process: turn by turn, as ratios of neighbouring times."""

import ctypes
import dataclasses
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

__all__ = ["Options", "Row", "bf16_instructions", "measure", "peak_mib", "ratios", "table", "write_rows"]


@dataclasses.dataclass
class Options:
    """What the command line asks for.

    Attributes:
        repeats: rounds of each measurement.
        images: folder of images instead of those that are made.
        quick: the smallest inputs and one round, to see whether a benchmark runs at all.
    """

    repeats: int = 7
    images: Path | None = None
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return an amount of work."""
        return quick if self.quick else full


@dataclasses.dataclass
class Row:
    """One measured quantity.

    Attributes:
        name: what was measured.
        peer: against what, or the unit of an absolute figure.
        min, median, max: over the rounds.
        goal: what the median must reach; None where nothing is judged. Rows with a goal compare with a floor that is
            measured in the same run, so that the goal holds on any machine.
        higher_is_better: the direction.
    """

    name: str
    peer: str
    min: float
    median: float
    max: float
    goal: float | None = None
    higher_is_better: bool = True

    @classmethod
    def of(cls, name: str, peer: str, values: list[float], **options) -> "Row":
        """Make a row of the values of all rounds."""
        return cls(name, peer, min(values), median(values), max(values), **options)

    def passes(self) -> bool | None:
        """Tell whether the median is at least as good as the goal; None without one."""
        if self.goal is None:
            return None
        return bool(self.median >= self.goal if self.higher_is_better else self.median <= self.goal)

    def record(self) -> dict:
        """Return what the file of results holds."""
        return {**dataclasses.asdict(self), "goal_passed": self.passes()}


def measure(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time some functions turn by turn; every round begins with another one.

    The time is CPU time of this process, which neighbours disturb less than the wall's.

    Args:
        variants: name -> what to run. Each is run once beforehand, untimed. One that returns a number has timed itself,
            in seconds.
        repeats: number of rounds.

    Returns:
        Seconds of each round, by name; entries of the same index are neighbours in time.
    """
    names = list(variants)
    for name in names:
        variants[name]()
    times = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                begin = time.process_time()
                own = variants[name]()
                times[name].append(own if isinstance(own, float) else time.process_time() - begin)
    finally:
        gc.enable()
    return times


def bf16_instructions() -> list[str]:
    """Return the processor's instructions for bf16; without any, bf16 is slower than float32."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return [name for name in ("avx512_bf16", "amx_bf16") if name in flags]


def peak_mib(step: Callable[[], object]) -> float:
    """Return how much memory a step needs at most beyond what the process holds before it, in MiB. Linux only.

    Take a step beforehand if the first one allocates what stays, such as an optimizer's state.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc keeps would hide what the step needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_mib("VmRSS")
    step()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def ratios(times: dict[str, list[float]], numerator: str, denominator: str) -> list[float]:
    """Return the ratio of two variants' times, round by round."""
    return [a / b for a, b in zip(times[numerator], times[denominator], strict=True)]


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    header = ("quantity", "against", "min", "median", "max", "goal", "")
    lines = [header]
    for row in rows:
        sign = ">= " if row.higher_is_better else "<= "
        goal = "" if row.goal is None else f"{sign}{row.goal:g}"
        numbers = [f"{value:.4g}" for value in (row.min, row.median, row.max)]
        lines.append((row.name, row.peer, *numbers, goal, {None: "", True: "reached", False: "MISSED"}[row.passes()]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write_rows(rows: list[Row], path: Path) -> None:
    """Write the rows as a JSON list; those of earlier runs in the same file stay unless measured anew."""
    new = [row.record() for row in rows]
    names = {(record["name"], record["peer"]) for record in new}
    old = json.loads(path.read_text()) if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [record for record in old if (record["name"], record["peer"]) not in names] + new
    path.write_text(json.dumps(records, indent=1) + "\n")
