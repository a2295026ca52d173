"""What compare and low_shot share."""

import argparse

from densesiam_d2.grid import Cell, Score
from densesiam_d2.grid.records import write_record
from densesiam_d2.tools.grid_command import run_grid


def test_a_dry_run_prints_only_what_would_run(tmp_path, capsys):
    """Of two pretrainings, one serves a probe that is done. Nothing has to run it."""
    cells = []
    for name in ("old", "new"):
        cells.append(Cell(f"pretrain/{name}", "pretrain", ("pretrain", name), tmp_path))
        score = (Score("AP", "r.json", "AP"),)
        cells.append(Cell(f"probe/{name}", "probe", ("probe", name), tmp_path, needs=(cells[-1].name,), scores=score))
    hardware = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}
    record = {"state": "done", "words": cells[1].fixed_words, "command": "", "needs": {}, "date": "today"}
    write_record(cells[1], {**record, "code": "", "hardware": hardware, "seconds": 1.0, "scores": {"AP": 1.0}})
    assert run_grid(cells, argparse.Namespace(dry_run=True), lambda: tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == ["pretrain new", "probe new"]
