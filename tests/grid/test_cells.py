import json
from pathlib import Path

import pytest

from densesiam_d2.grid import Cell, Score


@pytest.fixture
def folder(tmp_path):
    scores = {"coco:a.b.json": {"segm": {"AP": 12.5, "APs": None}}, "two": {"a": 1, "b": 2}}
    (tmp_path / "results.json").write_text(json.dumps(scores))
    (tmp_path / "one.json").write_text(json.dumps({"coco:a.b.json": {"segm": {"AP": 12.5, "APs": None}}}))
    return tmp_path


def test_a_score_is_read_by_its_path(folder):
    assert Score("AP", "one.json", "*.segm.AP").read(folder) == 12.5  # the data set's name holds dots
    assert Score("b", "results.json", "two.b").read(folder) == 2
    assert Score("APs", "one.json", "*.segm.APs").read(folder) is None
    for value in ("NaN", "Infinity", "-Infinity"):
        (folder / "one.json").write_text(f'{{"coco:a.b.json": {{"segm": {{"APs": {value}}}}}}}')
        assert Score("APs", "one.json", "*.segm.APs").read(folder) is None


@pytest.mark.parametrize(
    ("file", "path", "says"),
    [
        ("none.json", "a", "none.json cannot be read"),
        ("results.json", "*.a", r"\* is not one of \['coco:a.b.json', 'two'\]"),
        ("results.json", "two.c", r"no two.c: c is not one of \['a', 'b'\]"),
        ("results.json", "two.a.x", "x is not one of"),
        ("results.json", "two", "no number"),
    ],
)
def test_what_is_not_there_is_named(folder, file, path, says):
    with pytest.raises(ValueError, match=says):
        Score("AP", file, path).read(folder)


def test_a_moved_grid_has_the_same_fixed_words():
    cells = [Cell("a/b", "a", ("python", f"{root}/a/b/x.txt"), Path(root)) for root in ("/here", "/over/there")]
    assert cells[0].fixed_words == cells[1].fixed_words == ["python", "GRID/a/b/x.txt"]
    assert cells[0].command == "python /here/a/b/x.txt"
