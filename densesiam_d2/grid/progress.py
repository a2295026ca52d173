"""How long the rest of a grid will take."""

from collections import Counter
from collections.abc import Mapping, Sequence

from densesiam_d2.grid.cells import Cell
from densesiam_d2.grid.records import State

__all__ = ["duration", "time_left"]


def time_left(
    waiting: Sequence[Cell],
    running: Sequence[tuple[Cell, float]],
    records: Mapping[str, Mapping],
    cells: Mapping[str, Cell],
    *,
    workers: int,
) -> str:
    """Return the time that the rest of a grid takes, as text, from the finished cells of each stage.

    A cell takes the mean time that its stage takes for a unit of work, times its work.

    Args:
        waiting: the cells that nobody runs.
        running: the cells that run here, and for how many seconds.
        records: records of all cells.
        cells: all cells, by name.
        workers: number of cells that run at a time, other calls included.

    Returns:
        Such as "1 h 20 min", or "more than 5 min" or "an unknown time" if no cell of some stage has finished yet.
    """
    seconds_of, work_of = Counter(), Counter()  # stage -> sum over its finished cells
    for name, record in records.items():
        if record.get("state") == State.DONE:
            seconds_of[cells[name].stage] += record["seconds"]
            work_of[cells[name].stage] += cells[name].work
    rate = {stage: seconds_of[stage] / work for stage, work in work_of.items()}
    rest = [rate.get(cell.stage, 0.0) * cell.work for cell in waiting]
    rest += [max(0.0, rate.get(cell.stage, 0.0) * cell.work - seconds) for cell, seconds in running]
    seconds = max([sum(rest) / workers, *rest]) if rest else 0.0
    unknown = any(cell.stage not in rate for cell in [*waiting, *(cell for cell, _ in running)])
    if unknown:
        return f"more than {duration(seconds)}" if seconds else "an unknown time"
    return duration(seconds)


def duration(seconds: float) -> str:
    """Return a time as text, in two units at most."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
