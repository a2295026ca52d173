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


def test_values_in_settings_are_those_of_the_same_text(load):
    texts = load(YAML, "seed=0", "method=a", replace=[("seed: [0, 1]", 'seed: ["0", "1"]')])
    assert texts[0].name == "pretrain/a/0" and texts[0].axes["seed"] == "0"


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
        ("scratch: {weights", "scrath: {weights", "values: method has no value 'scrath'; did you mean scratch"),
        ("    skip: {method: [scratch]}", "    skip: {seed: ['0']}", "seed has no value '0'; write it as in axes: 0"),
        ("skip: {method", "skip: {methd", "stage pretrain: there is no axis methd; did you mean method"),
        ("    skip:", "    skp:", "stage pretrain has no key skp; did you mean skip"),
        ("words:", "wrds:", "a grid has no key wrds; did you mean words"),
        ("seed: [0, 1]", "seed: [0, a/b]", "axis seed: 'a/b' must be letters"),
        ("seed: [0, 1]", "seed: [0, ..]", r"axis seed: '\.\.' must be .* begin with no dot"),
        ("seed: [0, 1]", "seed: [0, 0, 1]", "axis seed has 0 twice"),
        ("seed: [0, 1]", "seed: 3", "axis seed must be a list, such as .*, not 3"),
        ("method: [a, scratch]", "method: as", "axis method must be a list, such as .*, not 'as'"),
        ("seed: [0, 1]", "seed: []", "axis seed has no values"),
        ("seed: [0, 1]", "seed: [null]", "axis seed: None is no text and no number"),
        ("seed: [0, 1]", "../seed: [0, 1]", "axes: '../seed' must be letters"),
        ("seed: [0, 1]", "seed: [0, seed_0]", "two cells have the name pretrain/a/seed_0"),
        ("seed: [0, 1]", "seed: [0, 1], data: [0, 1]", "axes: data is the name of another placeholder"),
        ("seed: [0, 1]", "seed: [0, 1], folder: [0, 1]", "axes: folder is the name of another placeholder"),
        ("axes: {method: [a, scratch], seed: [0, 1]}", "axes: [seed]", "axes must be lines of NAME: VALUE"),
        ("over: [method, seed]\n    command: test", "over: seed\n    command: test", "stage test: over must be a list"),
        ("over: [method, seed]\n    command: test", "command: test", "stage test needs the key over"),
        ("skip: {method: [scratch]}", "skip: {method: scratch}", "stage pretrain: skip method must be a list"),
        ("skip: {method: [scratch]}", "skip: [scratch]", "stage pretrain: skip must be lines of NAME: VALUE"),
        ("command: test", "# test", "stage test needs the key command"),
        ("command: test", "command: #", "stage test: command must be one text, .*, not None"),
        ("command: test", "command: 3 #", "stage test: command must be one text, .*, not 3"),
        ("command: test", 'command: "# test" #', "cell test/a/seed_0: its command has no words"),
        ("SEED {seed}", "SEED {seed} | tee x", r"cell test/a/seed_0: '\|' in the command is for a shell"),
        ("SEED {seed}", "SEED $SEED", r"cell test/a/seed_0: '\$SEED' in the command is for a shell"),
        ("test {weights}", "test {folder_of}", "{folder_of} stands without a stage"),
        ('[RATE, 0.1, "X {seed}"]', "[RATE, $GRID_TEST_RATE]", "{more} is the environment variable GRID_TEST_RATE"),
        ('[RATE, 0.1, "X {seed}"]', "[RATE, null]", "{more} has no value"),
        ('[RATE, 0.1, "X {seed}"]', "{seed}", "{more} is {.seed.: None}, which is no text: put it in quotes"),
        ("  test:", "  ../test:", "stages: '../test' must be letters"),
        ('[results.json, "*.AP"]', "[results.json]", r"stage test: score AP must be \[FILE, PATH\]"),
        ('scratch: {weights: ""}', "scratch: 5", "values: method: scratch must be lines of NAME: VALUE"),
        ("  method:\n    a:", "  method: [a]\n  seed:\n    0:", "values: method must be lines of NAME: VALUE"),
        ("words:", "axes: {method: [a]}\nwords:", "the key axes occurs twice, in lines 2 and 3"),
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
        ("seed=0,0,0,1", "axis seed has 0 twice"),
    ],
)
def test_mistakes_in_settings_are_named(load, setting, says):
    with pytest.raises(ValueError, match=says):
        load(YAML, setting)


@pytest.mark.parametrize("stages", ["{}", "{test: {over: [seed], skip: {seed: [0, 1]}, command: x}}"])
def test_a_grid_without_cells_is_refused(load, stages):
    with pytest.raises(ValueError, match="the grid has no cells"):
        load(f"axes: {{seed: [0, 1]}}\nstages: {stages}")


def test_a_shell_is_part_of_the_command(load):
    cells = load(replace=[("test {weights}", "sh -c 'test $0 > {folder}/x | tee y'")])
    assert cells[2].words[:3] == ("sh", "-c", "test $0 > /out/test/a/seed_0/x | tee y")


def test_lists_of_words_hold_environment_variables(load):
    assert "/the data/x" in load(replace=[("RATE, 0.1", "RATE, $GRID_TEST_DATA/x")])[0].words


def test_names_of_digits(load):
    cells = load(replace=[("  pretrain:", "  1:"), ("folder_of[pretrain]", "folder_of[1]")])
    assert cells[0].name == "1/a/seed_0" and cells[2].needs == ("1/a/seed_0",)


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
