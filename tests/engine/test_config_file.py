"""Yamls and command lines as people write them: values keep their meaning, and mistakes are one line."""

import re
from pathlib import Path

import pytest

from densesiam_d2.engine.config_file import load_config

BASE = Path(__file__).parents[2] / "configs/quick/pretrain_instant_test.yaml"


@pytest.fixture
def own(tmp_path):
    """Write a yaml with lines on top of ``BASE``, and return its path."""

    def make(lines):
        (tmp_path / "own.yaml").write_text(f"_BASE_: {BASE}\n{lines}\n")
        return str(tmp_path / "own.yaml")

    return make


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("SOLVER: {MAX_ITER: 3}\nSEED: 1\nSOLVER: {BASE_LR: 0.5}", "the key SOLVER occurs twice, in lines 2 and 4"),
        ("3: 4", "the key 3 is no name"),
        ("SOLVER: {3: 4}", "the key 3 is no name"),
        ("SOLVER:", "SOLVER is None, but it is a section: give its keys"),
        ("MODEL: {SSL: 3}", r"MODEL\.SSL is 3, but it is a section: give its keys"),
        ("SOLVER.MAX_ITER: 1", r"SOLVER\.MAX_ITER must not be one word: write MAX_ITER indented below SOLVER"),
    ],
)
def test_mistakes_in_a_yaml_are_one_line(own, lines, message):
    with pytest.raises(ValueError, match=rf"own\.yaml.*: {message}") as raised:
        load_config(own(lines))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("MODEL: {WEIGHTS: }", [], "MODEL.WEIGHTS has no value: write '' for none"),
        ("DATASETS: {TEST: }", [], "DATASETS.TEST has no value: write () for none"),
        ("SEED: 1", ["SOLVER.EPOCHS", "None"], "SOLVER.EPOCHS has no value: write one, such as 0.0"),
    ],
)
def test_a_key_without_a_value_is_named(own, lines, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_config(own(lines), options)


def test_a_yaml_that_is_not_utf_8_is_named(own):
    path = Path(own("SEED: 1"))
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(ValueError, match=r"own\.yaml is not UTF-8: save it as UTF-8$"):
        load_config(str(path))


def test_a_key_that_occurs_twice_in_a_base_is_named_too(own, tmp_path):
    Path(own("SEED: 1\nSEED: 2")).rename(tmp_path / "base.yaml")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSEED: 3\n")
    with pytest.raises(ValueError, match=r"base\.yaml: the key SEED occurs twice, in lines 2 and 3"):
        load_config(str(tmp_path / "top.yaml"))


def test_whole_numbers_are_accepted_for_other_numbers(own):
    solver = load_config(own("SOLVER: {BASE_LR: 1, MAX_ITER: 7, LARS: {EPS: 2}}"), ["SOLVER.EPOCHS", "-1"]).SOLVER
    values = solver.BASE_LR, solver.LARS.EPS, solver.EPOCHS
    assert values == (1, 2, -1) and all(type(value) is float for value in values) and solver.MAX_ITER == 7


@pytest.mark.parametrize("key", ["SOLVER.BASE_LR=1", "SOLVER.BASE_LR.X"])
def test_what_follows_a_key_is_part_of_the_unknown_key(key):
    with pytest.raises(ValueError, match=rf"no config key {re.escape(key)}; did you mean SOLVER\.BASE_LR\?$"):
        load_config(str(BASE), [key, "x"])


def test_the_home_folder_in_paths(own, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    cfg = load_config(own('OUTPUT_DIR: "~/runs/a"'), ["MODEL.WEIGHTS", "~/weights.pkl"])
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("/home/someone/runs/a", "/home/someone/weights.pkl")


def test_a_flag_after_the_keys_is_named():
    with pytest.raises(ValueError, match=r"^--dry-run stands after the first config key"):
        load_config(str(BASE), ["SOLVER.MAX_ITER", "3", "--dry-run"])


def test_two_lengths_of_training_are_refused(own):
    with pytest.raises(ValueError, match=r"^SOLVER\.EPOCHS 2 and SOLVER\.MAX_ITER 3 both say how long to train"):
        load_config(own("SEED: 1"), ["SOLVER.EPOCHS", "2", "SOLVER.MAX_ITER", "3"])
    assert load_config(own("SEED: 1"), ["SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "3"]).SOLVER.MAX_ITER == 3
    assert load_config(own("SOLVER: {EPOCHS: 2}"), ["SOLVER.MAX_ITER", "3"]).SOLVER.EPOCHS == 0
    with pytest.raises(ValueError, match=r"^SOLVER\.WARMUP_EPOCHS 2 and SOLVER\.WARMUP_ITERS 3 both say how long"):
        load_config(own("SEED: 1"), ["SOLVER.WARMUP_EPOCHS", "2", "SOLVER.WARMUP_ITERS", "3"])
    assert load_config(own("SOLVER: {WARMUP_EPOCHS: 2}"), ["SOLVER.WARMUP_ITERS", "3"]).SOLVER.WARMUP_EPOCHS == 0


@pytest.mark.parametrize(("iterations", "epochs"), [("MAX_ITER", "EPOCHS"), ("WARMUP_ITERS", "WARMUP_EPOCHS")])
def test_the_length_in_the_nearest_file_counts(own, tmp_path, iterations, epochs):
    Path(own(f"SOLVER: {{{epochs}: 2}}")).rename(tmp_path / "base.yaml")
    top = tmp_path / "top.yaml"
    expected = {
        f"SOLVER: {{{iterations}: 3}}": 0,
        f"SOLVER: {{{iterations}: 3, {epochs}: 4}}": 4,
        f"SOLVER: {{{epochs}: 5}}": 5,
        "SEED: 1": 2,
    }
    for lines, length in expected.items():
        top.write_text(f"_BASE_: base.yaml\n{lines}\n")
        assert load_config(str(top)).SOLVER[epochs] == length
    (tmp_path / "other.yaml").write_text(f"SOLVER: {{{iterations}: 3}}\n")
    for bases, length in (("[base.yaml, other.yaml]", 0), ("[other.yaml, base.yaml]", 2)):  # the last one counts
        top.write_text(f"_BASE_: {bases}\n")
        assert load_config(str(top)).SOLVER[epochs] == length


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.STEPS", "300", 'SOLVER.STEPS is 300, but it is a tuple, such as "(300,)"'),
        ("DATASETS.TRAIN", "", 'DATASETS.TRAIN is empty, but it is a tuple, such as "()"'),
        ("INPUT.SSL.CROP_SCALE", "0.5", 'INPUT.SSL.CROP_SCALE is 0.5, but it is a list, such as "[0.5]"'),
        (
            "MODEL.RPN.IN_FEATURES",
            "[p2, p3]",
            "MODEL.RPN.IN_FEATURES is [p2, p3], but it is a list, such as \"['p2','p3']\"",
        ),
    ],
)
def test_one_value_for_several_is_named_with_the_form(key, value, expected, own):
    with pytest.raises(ValueError, match=re.escape(expected) + "$"):
        load_config(str(BASE), [key, value])
