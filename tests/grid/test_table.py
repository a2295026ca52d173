import dataclasses
import json
import math

import pytest

from densesiam_d2.grid import Cell, Score, State, Table, restore, state_of
from densesiam_d2.grid.progress import duration, time_left
from densesiam_d2.grid.records import write_record

HARDWARE = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}


def make(root, method, seed, *, AP=None, state="done", **more):
    cell = Cell(
        f"t/{method}/seed_{seed}",
        "t",
        ("run", method, str(seed)),
        root,
        {"method": method, "seed": seed},
        scores=(Score("AP", "r.json", "AP"),),
    )
    if state != "missing":
        record = {"state": state, "words": cell.fixed_words, "command": cell.command, "needs": {}, "date": "today"}
        record |= {"hardware": HARDWARE, "code": "abc", "seconds": 10.0 * (seed + 1), "scores": {"AP": AP}}
        write_record(cell, {**record, **more})
    return cell


@pytest.fixture
def cells(tmp_path):
    return [
        *(make(tmp_path, "full", seed, AP=AP) for seed, AP in enumerate((30.0, 33.0, 36.0))),
        make(tmp_path, "part", 0, AP=10.0),
        make(tmp_path, "part", 1, state="failed", error="exit code 1: no memory"),
        make(tmp_path, "part", 2, state="missing"),
        make(tmp_path, "null", 0, AP=None),
        make(tmp_path, "new", 0, AP=5.0, words=["other"], command="other"),
    ]


def test_mean_and_sample_standard_deviation(cells):
    table = Table(cells)
    full = table.rows["full",]["AP"]
    # mean 33; squared distances 9 + 0 + 9 over n - 1 = 2
    assert full.mean == 33.0 and full.std == math.sqrt(18 / 2) and str(full) == "33.0 ± 3.0"
    part = table.rows["part",]["AP"]
    assert part.mean == 10.0 and part.std is None and str(part) == "10.0 (1 failed, 1 missing)"
    assert str(table.rows["null",]["AP"]) == "1 null" and str(table.rows["new",]["AP"]) == "1 changed"


def test_what_is_not_done_is_listed(cells):
    table = Table(cells)
    assert table.missing == {
        "t/part/seed_1": "failed: exit code 1: no memory",
        "t/part/seed_2": "missing",
        "t/new/seed_0": "changed: t/new/seed_0 was done with another command: other",
    }


def test_markdown_and_json(cells):
    table = Table(cells)
    lines = table.markdown().splitlines()
    assert lines[:3] == ["| method | AP |", "| --- | ---: |", "| full | 33.0 ± 3.0 |"]
    assert "t 10 (10 to 30, 5 cells)" in table.markdown()  # 10, 20, 30, 10, 10
    assert "Code: abc." in lines and "Hardware: Some CPU, 2 cores, torch 2.6." in lines
    assert "- t: 1 never started: part/seed_2" in lines
    content = json.loads(json.dumps(table.to_json()))
    assert content["rows"][0] == {
        "method": "full",
        "scores": {"AP": {"mean": 33.0, "std": 3.0, "values": [30.0, 33.0, 36.0], "others": []}},
    }


def test_cells_that_never_started_are_named_up_to_20(tmp_path):
    cells = [make(tmp_path, "a", seed, state="missing") for seed in range(21)]
    names = ", ".join(f"a/seed_{seed}" for seed in range(20))
    assert f"\n- t: 20 never started: {names}\n" in Table(cells[:20]).markdown()
    assert "\n- t: 21 never started\n" in Table(cells).markdown()


def test_rows_that_never_started_are_listed_below_the_table(cells, tmp_path):
    waiting = [make(tmp_path, name, seed, state="missing") for name in ("a", "b") for seed in (0, 1)]
    lines = Table([*cells, *waiting]).markdown().splitlines()
    assert [line.split()[1] for line in lines[2:6]] == ["full", "part", "null", "new"] and not lines[6]
    assert "- 2 rows are not in the table, because none of their cells was started: a, b" in lines


def test_a_score_that_the_grid_names_later_is_read_from_the_files(tmp_path):
    cell = make(tmp_path, "full", 0, scores={})
    (cell.folder / "r.json").write_text('{"AP": 7.0}')
    assert Table([cell]).rows["full",]["AP"].values == [7.0]


def test_only_some_stages(cells, tmp_path):
    needs = Cell("u", "u", ("x",), tmp_path, {"seed": 0}, needs=("t/full/seed_0",), scores=cells[0].scores)
    assert Table([*cells, needs], only=["u"]).missing == {"u": "missing"}


def test_time_left(tmp_path):
    done = [make(tmp_path, "a", 0), make(tmp_path, "a", 2)]  # 10 and 30 s: mean 20
    waiting = [make(tmp_path, "b", i, state="missing") for i in range(5)]
    cells = {cell.name: cell for cell in [*done, *waiting]}
    records = {cell.name: json.loads((cell.folder / "cell.json").read_text()) for cell in done}
    # four wait, 80 s, and one has run 5 of its 20 s: 95 s of work
    args = (waiting[:4], [(waiting[4], 5.0)], records, cells)
    assert time_left(*args, workers=1) == "95 s" and time_left(*args, workers=2) == "48 s"
    assert time_left([], [(waiting[4], 5.0)], records, cells, workers=4) == "15 s"
    other = Cell("other", "other", (), tmp_path)
    assert time_left([waiting[0], other], [], records, cells, workers=1) == "more than 20 s"
    assert time_left([other], [], {}, cells, workers=1) == "an unknown time"


def test_time_left_follows_the_work(tmp_path):
    """100 and 300 iterations took 10 and 30 s, 0.1 s each: 500 and 50 more take 55 s."""
    make_one = lambda seed, work: dataclasses.replace(make(tmp_path, "a", seed), work=work)  # noqa: E731
    done, waiting = [make_one(0, 100), make_one(2, 300)], [make_one(3, 500), make_one(4, 50)]
    records = {cell.name: json.loads((cell.folder / "cell.json").read_text()) for cell in done}
    cells = {cell.name: cell for cell in [*done, *waiting]}
    assert time_left(waiting, [], records, cells, workers=1) == "55 s"
    assert time_left([], [(waiting[0], 20.0)], records, cells, workers=1) == "30 s"


@pytest.mark.parametrize(("seconds", "text"), [(99, "99 s"), (100, "2 min"), (3599, "1 h 0 min"), (5400, "1 h 30 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_finished_cells_go_on_in_another_folder(cells, tmp_path):
    content = json.loads(json.dumps(Table(cells).to_json()))
    moved = [dataclasses.replace(cell, root=tmp_path / "other") for cell in cells]
    assert restore(moved, content) == [f"t/full/seed_{seed}" for seed in range(3)] + ["t/part/seed_0", "t/null/seed_0"]
    again = Table(moved)
    assert again.rows["full",] == Table(cells).rows["full",] and again.rows["null",]["AP"].others == ["null"]
    assert again.codes == ["abc"] and again.seconds == {"t": [10.0, 20.0, 30.0, 10.0, 10.0]}
    assert state_of(moved[5]) == state_of(moved[7]) == State.MISSING  # was missing; was done with another command
    assert restore(moved, content) == []  # what has a record stays


def test_cells_of_other_settings_are_refused_and_other_paths_are_not(cells, tmp_path):
    content = Table(cells).to_json()
    paths, rate = (
        [dataclasses.replace(cells[0], root=tmp_path / "other", words=(*cells[0].words, word))]
        for word in ("/elsewhere/data", "0.1")
    )
    with pytest.raises(ValueError, match="t/full/seed_0 had other settings there"):
        restore(rate, content)
    assert restore(paths, content) == ["t/full/seed_0"]
    first = dataclasses.replace(cells[0], name="p/full", stage="p", scores=())
    needing = dataclasses.replace(cells[1], needs=("p/full",))
    with_need = Table([first, needing]).to_json()
    longer = [dataclasses.replace(c, root=tmp_path / "fourth") for c in (first, needing)]
    longer[0] = dataclasses.replace(longer[0], words=("run", "longer"))
    with pytest.raises(ValueError, match="seed_1 had other settings there"):
        restore(longer, with_need)
    del content["cells"]["t/full/seed_0"]["date"]
    for damaged, message in ((content, "seed_0 is not as"), ({}, 'no "cells"'), ([], 'no "cells"')):
        with pytest.raises(ValueError, match=message):
            restore([dataclasses.replace(cells[0], root=tmp_path / "third")], damaged)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("scores", {"AP": "3"}, "AP cannot be '3'"),
        ("scores", {"AP": math.nan}, "AP cannot be nan"),
        ("scores", {"AP": math.inf}, "AP cannot be inf"),
        ("scores", None, "scores cannot be None"),
        ("seconds", "10", "seconds cannot be '10'"),
        ("code", ["abc"], r"code cannot be \['abc'\]"),
        ("date", None, "date cannot be None"),
        ("hardware", None, "hardware cannot be None"),
        ("hardware", {"cpu": "Some CPU"}, "hardware must have the keys cores, cpu, gpus, torch"),
        ("settings", None, "settings cannot be None"),
    ],
)
def test_values_that_no_table_can_show_are_refused(cells, tmp_path, key, value, says):
    """In a JSON before a record is written, and in a record."""
    content = Table(cells).to_json()
    content["cells"]["t/full/seed_1"][key] = value
    with pytest.raises(ValueError, match=f"t/full/seed_1 is not as `grid table --json` writes it: {says}"):
        restore([dataclasses.replace(cell, root=tmp_path / "other") for cell in cells], content)
    assert not (tmp_path / "other").exists()
    if key != "settings":
        make(tmp_path, "full", 1, AP=1.0, **{key: value})
        with pytest.raises(ValueError, match=rf"t/full/seed_1/cell.json is no record of a cell \({says}\): delete it"):
            Table(cells)


def test_a_cell_without_scores_is_not_missing_when_all_that_need_it_are_done(cells, tmp_path):
    serving = dataclasses.replace(cells[0], name="p/full", stage="p", scores=(), axes={"method": "full"})
    done, part = (dataclasses.replace(cell, needs=("p/full",)) for cell in (cells[0], cells[5]))
    assert Table([serving, done]).missing == {}
    assert set(Table([serving, done, part]).missing) == {"p/full", "t/part/seed_2"}
