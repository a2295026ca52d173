"""A grid of runs: cells that are one command each, run once, shared by several calls, and summed up in a table."""

from densesiam_d2.grid.cells import Cell, Score
from densesiam_d2.grid.records import State, restore, state_of
from densesiam_d2.grid.run import run_cells, waiting
from densesiam_d2.grid.spec import Grid, Stage
from densesiam_d2.grid.table import Table, insert_table

__all__ = [
    "Cell",
    "Grid",
    "Score",
    "Stage",
    "State",
    "Table",
    "insert_table",
    "restore",
    "run_cells",
    "state_of",
    "waiting",
]
