"""The rules about the keys of optimizers and epochs."""

import pytest
from detectron2.config import get_cfg

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.config_checks import check_config


def _cfg(key, value):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_list(["DATASETS.TRAIN", ("coco_2017_train",), f"SOLVER.{key}", value])
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("OPTIMIZER", "Adam", "one of SGD, AdamW, LARS"),
        ("ADAMW.BETAS", [0.9], "two numbers in [0, 1)"),
        ("ADAMW.BETAS", [0.9, 1.0], "two numbers in [0, 1)"),
        ("ADAMW.EPS", 0.0, "> 0"),
        ("LARS.EPS", -1.0, ">= 0"),
        ("LARS.TRUST_COEFFICIENT", 0.0, "> 0"),
        ("EPOCHS", -1.0, ">= 0"),
        ("EPOCHS", float("inf"), ">= 0"),
        ("WARMUP_EPOCHS", -1.0, ">= 0"),
        ("WARMUP_EPOCHS", float("nan"), ">= 0"),
    ],
)
def test_bad_value_is_named_with_what_it_must_be(key, value, text):
    with pytest.raises(ValueError) as error:
        check_config(_cfg(key, value))
    assert f"SOLVER.{key} is {value!r}; it must be {text}" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [("OPTIMIZER", "LARS"), ("ADAMW.BETAS", [0.0, 0.95]), ("LARS.EPS", 1e-8), ("EPOCHS", 0.5)]
)
def test_neighbours_of_bad_values_pass(key, value):
    cfg = _cfg(key, value)
    cfg.SOLVER.STEPS = ()  # with EPOCHS they are fractions
    check_config(cfg)
