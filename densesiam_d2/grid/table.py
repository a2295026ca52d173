"""Sum up a grid: mean and standard deviation over the seeds, and what is missing."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import mean, median, stdev

from densesiam_d2.grid.cells import Cell
from densesiam_d2.grid.records import State, conflict, portable, read_record, superfluous

__all__ = ["Entry", "Table", "insert_table"]

CHANGED = "changed"  # done, but with another command
NULL = "null"  # done, but the score is not a number
_LISTED = 20  # rows, and cells of a stage, that never started are named up to this number


@dataclasses.dataclass
class Entry:
    """A score of one row.

    Attributes:
        values: the score of each finished cell, in the order of the cells.
        others: the states of the other cells.
    """

    values: list[float] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)

    @property
    def started(self) -> bool:
        """Whether one of the cells was ever started."""
        return bool(self.values) or any(state != State.MISSING for state in self.others)

    @property
    def mean(self) -> float | None:
        """The mean; None without values."""
        return mean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation, with n - 1; None for fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        others = ", ".join(f"{count} {state}" for state, count in Counter(self.others).items())
        if not self.values:
            return others
        text = f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")
        return f"{text} ({others})" if others else text


class Table:
    """The scores of a grid's cells, averaged over the axis "seed".

    Attributes:
        axes: names of the axes that make the rows.
        rows: values of these axes -> score -> entry, in the order of the cells.
        scores: names of the scores.
        missing: name -> state and reason, of the cells that are not done.
        seconds: stage -> seconds of its finished cells.
        codes: the code versions of the finished cells.
        machines: their hardware.
        cells: name -> scores, seconds, code, hardware and date of each finished cell that has scores.
    """

    def __init__(self, cells: Sequence[Cell], *, only: Collection[str] = ()):
        """Read the records.

        Args:
            cells: all cells of the grid.
            only: names of the stages to show; empty means all.

        Raises:
            ValueError: a cell.json or a file of scores is damaged.
        """
        records = {cell.name: read_record(cell) for cell in cells}
        by_name = {cell.name: cell for cell in cells}
        unneeded = superfluous(cells, records)
        cells = [cell for cell in cells if not only or cell.stage in only]
        self.axes = list(dict.fromkeys(axis for cell in cells for axis in cell.axes if axis != "seed"))
        self.scores = list(dict.fromkeys(score.name for cell in cells for score in cell.scores))
        self.rows: dict[tuple, dict[str, Entry]] = {}
        self.missing: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = {}
        self.cells: dict[str, dict] = {}
        codes, machines = {}, {}
        for cell in cells:
            record = records[cell.name]
            if cell.name in unneeded and not record:
                continue
            state = self._check(cell, records)
            if state == State.DONE:
                codes[record["code"]] = machines[_machine(record["hardware"])] = True
                self.seconds.setdefault(cell.stage, []).append(record["seconds"])
            for score in cell.scores:
                row = self.rows.setdefault(tuple(cell.axes.get(axis, "") for axis in self.axes), {})
                entry = row.setdefault(score.name, Entry())
                if state == State.DONE and record.get("restored") and score.name not in record["scores"]:
                    entry.others.append(State.MISSING)  # restored cells have no files with other scores
                    continue
                value = None
                if state == State.DONE:  # scores that the grid names since then are in the cell's files
                    value = record["scores"][score.name] if score.name in record["scores"] else score.read(cell.folder)
                if value is None:
                    entry.others.append(NULL if state == State.DONE else state)
                else:
                    entry.values.append(value)
                if state == State.DONE:
                    self.cells.setdefault(cell.name, portable(cell, record, by_name))["scores"][score.name] = value
        self.codes, self.machines = list(codes), list(machines)

    def _check(self, cell: Cell, records: Mapping[str, dict]) -> str:
        """Return a cell's state, and note why it is missing."""
        record = records[cell.name]
        state, error = record.get("state", State.MISSING), record.get("error")
        if wrong := conflict(cell, record, records):
            state, error = CHANGED, wrong
        if state != State.DONE:
            self.missing[cell.name] = f"{state}: {error}" if error else state
        return state

    def markdown(self) -> str:
        """Return the table, the times, the machines, and what is missing as Markdown.

        Rows without a single cell that was started are not in the table but in the list of what is missing.
        """
        lines = [_line([*self.axes, *self.scores]), _line(["---"] * len(self.axes) + ["---:"] * len(self.scores))]
        empty = []
        for row, entries in self.rows.items():
            if any(entry.started for entry in entries.values()):
                lines.append(_line([*row, *(str(entries.get(score, "")) for score in self.scores)]))
            else:
                empty.append("/".join(str(value) for value in row if value != ""))
        if self.seconds:
            lines += ["", "Seconds of a cell, median (min to max): " + "; ".join(map(self._time, self.seconds)) + "."]
            lines += [f"Code: {'; '.join(self.codes)}.", f"Hardware: {'; '.join(self.machines)}."]
        if self.missing:
            lines += ["", f"Not done ({len(self.missing)}):", ""]
            if empty:
                lines.append(
                    f"- {len(empty)} rows are not in the table, because none of their cells was started{_names(empty)}"
                )
            never: dict[str, list[str]] = {}
            for name, reason in self.missing.items():
                if reason == State.MISSING:
                    stage, _, rest = name.partition("/")
                    never.setdefault(stage, []).append(rest or name)
                else:
                    lines.append(f"- {name}: {reason}")
            lines += [f"- {stage}: {len(names)} never started{_names(names)}" for stage, names in never.items()]
        return "\n".join(lines) + "\n"

    def _time(self, stage: str) -> str:
        seconds = sorted(self.seconds[stage])
        return f"{stage} {median(seconds):.0f} ({seconds[0]:.0f} to {seconds[-1]:.0f}, {len(seconds)} cells)"

    def to_json(self) -> dict:
        """Return everything as a dict for a JSON file."""
        rows = [
            {
                **dict(zip(self.axes, row, strict=True)),
                "scores": {
                    name: {"mean": entry.mean, "std": entry.std, "values": entry.values, "others": entry.others}
                    for name, entry in entries.items()
                },
            }
            for row, entries in self.rows.items()
        ]
        return {
            "rows": rows,
            "missing": self.missing,
            "seconds": self.seconds,
            "codes": self.codes,
            "machines": self.machines,
            "cells": self.cells,
        }


def _names(names: Sequence[str]) -> str:
    return f": {', '.join(names)}" if len(names) <= _LISTED else ""


def _machine(hardware: Mapping) -> str:
    device = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"
    return f"{device}, torch {hardware['torch']}"


def _line(cells: Sequence) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def insert_table(text: str, name: str, table: str) -> str:
    """Return a text with the table between its marker lines; an empty text becomes these lines and the table.

    Raises:
        ValueError: the text has not both lines.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if text and not found:
        raise ValueError(f"write the lines {begin.strip()} and {end}, in this order, where the table is to stand")
    return before + begin + table + end + (after or "\n")
