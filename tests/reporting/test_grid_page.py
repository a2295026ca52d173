import re

import pytest

from densesiam_d2.grid import Cell, Score, Table
from densesiam_d2.grid.records import write_record
from densesiam_d2.grid.table import Entry
from densesiam_d2.reporting.grid_page import difference, points, runs_section


@pytest.mark.parametrize(
    ("ours", "other", "text"),
    [
        # standard deviations sqrt(2) each, 2.83 together
        ([14.0, 16.0], [10.0, 12.0], "+4.0 (clear)"),
        ([10.0, 12.0], [14.0, 16.0], "-4.0 (clear)"),
        ([12.0, 14.0], [10.0, 12.0], "+2.0 (not clear)"),
        ([15.0], [10.0, 12.0], "+4.0 (one seed)"),
        ([], [10.0, 12.0], ""),
    ],
)
def test_difference_beside_its_noise(ours, other, text):
    assert difference(Entry(ours), Entry(other)) == text


def test_points_leave_out_what_is_missing():
    entries = [(10, Entry([1.0, 3.0])), (25, Entry()), (50, Entry([5.0])), (None, Entry([4.0]))]
    assert points(entries) == [(10, 2.0, pytest.approx(2**0.5)), (50, 5.0, None)]


def test_failed_and_missing_runs_are_shown(tmp_path):
    cells = [
        Cell(f"t/seed_{seed}", "t", ("x", str(seed)), tmp_path, {"seed": seed}, scores=(Score("AP", "r.json", "AP"),))
        for seed in range(4)
    ]
    hardware = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}
    done, failed = {"state": "done", "scores": {"AP": 3.0}}, {"state": "failed", "error": "exit code 1: no <memory>"}
    for cell, seconds, state in zip(cells[:3], (7.4, 20.0, 1.0), (done, done, failed), strict=True):
        record = {
            "words": cell.fixed_words,
            "command": "",
            "needs": {},
            "date": "today",
            "code": "abc",
        }
        write_record(cell, {**record, "hardware": hardware, "seconds": seconds, **state})
    page = runs_section(cells, Table(cells), "python -m tool 'a b'").to_html()
    assert "python -m tool &#x27;a b&#x27;" in page and "2 of 4 runs are done" in page
    cells_of_tables = re.findall(r"<td>(.*?)</td>", page)
    assert cells_of_tables[:4] == ["t/seed_2", "failed: exit code 1: no &lt;memory&gt;", "t/seed_3", "missing"]
    assert cells_of_tables[4:] == ["t", "2", "7", "20"]
    assert "Some CPU, 2 cores, torch 2.6" in page and "Code: abc" in page
