from pathlib import Path

import pytest

from densesiam_d2.grid import Grid

YAML = """
axes: {method: [a, scratch], seed: [0, 1]}
words:
  data: $GRID_TEST_DATA
  config: configs/{method}.yaml
  more: []
  weights: "{folder_of[pretrain]}/backbone.pkl"
values:
  method:
    a: {more: [RATE, 0.1, "X {seed}"]}
    scratch: {weights: ""}
stages:
  pretrain:
    over: [method, seed]
    skip: {method: [scratch]}
    command: train {config} "folder:{data}/x y" {more} OUT {folder}
  test:
    over: [method, seed]
    command: test {weights} {{}} SEED {seed}
    scores: {AP: [results.json, "*.AP"]}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("GRID_TEST_DATA", "/the data")

    def load(text=YAML, *settings, replace=()):
        for old, new in replace:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "grid.yaml").write_text(text)
        return Grid.load(tmp_path / "grid.yaml", settings).cells(Path("/out"))

    return load


def test_cells_of_all_combinations(load):
    cells = {cell.name: cell for cell in load()}
    assert list(cells) == [
        "pretrain/a/seed_0",
        "pretrain/a/seed_1",
        "test/a/seed_0",
        "test/a/seed_1",
        "test/scratch/seed_0",
        "test/scratch/seed_1",
    ]
    first = cells["pretrain/a/seed_1"]
    rest = ("RATE", "0.1", "X 1", "OUT", "/out/pretrain/a/seed_1")
    assert first.words == ("train", "configs/a.yaml", "folder:/the data/x y", *rest)
    assert first.axes == {"method": "a", "seed": 1} and first.needs == () and first.folder == Path(rest[-1])
    assert cells["test/a/seed_1"].words == ("test", "/out/pretrain/a/seed_1/backbone.pkl", "{}", "SEED", "1")
    assert cells["test/a/seed_1"].needs == ("pretrain/a/seed_1",)
    assert cells["test/scratch/seed_0"].words == ("test", "", "{}", "SEED", "0")
    assert cells["test/scratch/seed_0"].needs == ()
    assert cells["test/scratch/seed_0"].scores[0].path == "*.AP"


def test_settings_replace_words_and_values(load):
    cells = load(YAML, "seed=7,8", "method=a", "data=/other")
    assert [cell.name for cell in cells if cell.stage == "test"] == ["test/a/seed_7", "test/a/seed_8"]
    assert "folder:/other/x y" in cells[0].words
    scratch = load(YAML, "method=scratch", "weights=random")[0]
    assert scratch.words[1] == "random"  # although the grid has another word for scratch


def test_a_stage_may_have_fewer_axes(load):
    fewer = ("    over: [method, seed]\n    skip", "    over: [method]\n    skip")
    cells = load(YAML, replace=[fewer, ("X {seed}", "X")])
    needs = {cell.name: cell.needs for cell in cells}
    assert needs["test/a/seed_0"] == needs["test/a/seed_1"] == ("pretrain/a",)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{config}", "{confg}", r"pretrain/a/seed_0: there is no placeholder {confg}; did you mean config\?"),
        ("OUT {folder}", "OUT {folder", "pretrain/a/seed_0: .*expected '}'"),
        ("{folder_of[pretrain]}", "{folder_of[pretran]}", "no earlier stage of this name; did you mean pretrain"),
        ("{folder_of[pretrain]}", "{folder_of[test]}", "no earlier stage of this name"),
        ('scratch: {weights: ""}', "scratch: {}", "test/scratch/seed_0: {folder_of.pretrain.}: .* is it skipped"),
        (
            "$GRID_TEST_DATA",
            "$GRID_TEST_DATA_2",
            "environment variable GRID_TEST_DATA_2, which is not set.*--set data=",
        ),
        ("$GRID_TEST_DATA", "", "{data} has no value: give --set data="),
        ("$GRID_TEST_DATA", '"{config}/{data}"', "{data} stands for itself"),
        ('x y" {more}', 'x y" a{more}', "{more} is a list of words"),
        ("scratch: {weights", "scrath: {weights", "values: method has no value scrath; did you mean scratch"),
        ("skip: {method", "skip: {methd", "stage pretrain: there is no axis methd; did you mean method"),
        ("    skip:", "    skp:", "stage pretrain has no key skp; did you mean skip"),
        ("words:", "wrds:", "a grid has no key wrds; did you mean words"),
        ("seed: [0, 1]", "seed: [0, a/b]", "axis seed: 'a/b' must be letters"),
        ("command: test", "scores: {}\n    # test", "the key 'command' is missing"),
        ("axes:", "axes: [", "grid.yaml: "),
    ],
)
def test_mistakes_in_the_yaml_are_named(load, old, new, says):
    with pytest.raises(ValueError, match=says) as error:
        load(replace=[(old, new)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("method=b", "method has no value b"),
        ("method=1", "method has no value 1"),
        ("sed=1", "one of the names method, seed, data"),
        ("seed", "write NAME=VALUE"),
        ("seed=", "seed has no value"),
    ],
)
def test_mistakes_in_settings_are_named(load, setting, says):
    with pytest.raises(ValueError, match=says):
        load(YAML, setting)


def test_a_missing_yaml_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        Grid.load(Path("none.yaml"))


GRIDS = sorted((Path(__file__).parents[2] / "configs" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_of_the_project_can_be_made(path):
    cells = Grid.load(path, ["data=/data"] if "data" in Grid.load(path).words else []).cells(Path("/out"))
    assert any(cell.scores for cell in cells) or path.stem == "label_free_metrics"  # tools.judge_metrics reads its runs
    names = {cell.name for cell in cells}
    assert len(names) == len(cells) and all(set(cell.needs) <= names for cell in cells)
