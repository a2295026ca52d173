"""Parts of the pages that show a grid of runs: differences beside their noise, and what has run and what has not."""

from collections.abc import Sequence

from densesiam_d2.grid.cells import Cell
from densesiam_d2.grid.table import Entry, Table
from densesiam_d2.reporting.page import Section

__all__ = ["DIFFERENCE_NOTE", "difference", "points", "runs_section"]

DIFFERENCE_NOTE = (
    'A difference of two means is "clear" if it is larger than the sum of both standard deviations; otherwise other '
    "seeds may turn it around."
)


def difference(ours: Entry, other: Entry) -> str:
    """Return the difference of two means and whether it is clear, such as "+4.3 (clear)"; "" without two means."""
    if ours.mean is None or other.mean is None:
        return ""
    text = f"{ours.mean - other.mean:+.1f}"
    if ours.std is None or other.std is None:
        return f"{text} (one seed)"
    return f"{text} (clear)" if abs(ours.mean - other.mean) > ours.std + other.std else f"{text} (not clear)"


def points(entries: Sequence[tuple[float | None, Entry]]) -> list[tuple[float, float, float | None]]:
    """Return (x, mean, standard deviation) of the entries that have values and a place on the x-axis."""
    return [(x, entry.mean, entry.std) for x, entry in entries if x is not None and entry.mean is not None]


def runs_section(cells: Sequence[Cell], table: Table, command: str) -> Section:
    """Return the section with the command, the machines, the times, and all cells that failed or are missing.

    Args:
        cells: all cells of the grid.
        table: their scores.
        command: the command line of the whole grid.
    """
    section = Section("The runs").command(command)
    done = len(cells) - len(table.missing)
    section.text(f"{done} of {len(cells)} runs are done. The same command runs the others.")
    if table.missing:
        section.table(["not done", "state"], list(table.missing.items()))
    if table.seconds:
        rows = [[stage, len(times), round(min(times)), round(max(times))] for stage, times in table.seconds.items()]
        section.table(["stage", "done", "seconds, least", "most"], rows)
        section.text(f"Hardware: {'; '.join(table.machines)}. Code: {'; '.join(table.codes)}.")
    return section.text("Each run has a folder of its name with its command (cell.json), log.txt and results.")
