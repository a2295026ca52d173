"""Every key has a reader; every yaml loads, says how to run it, and runs no code."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.config_checks import check_config
from densesiam_d2.config_rules import RULES

ROOT = Path(__file__).resolve().parent.parent
YAMLS = sorted((ROOT / "configs").rglob("*.yaml"))
yamls = pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))


def _leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _config():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    return cfg


def _added_keys():
    stock = get_cfg()
    add_deeplab_config(stock)
    return sorted(set(_leaves(_config())) - set(_leaves(stock)))


def _attributes(path):
    """Every dotted name that a file's code reads, such as "cfg.MODEL.SSL.NORM"; comments and strings do not count."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_every_added_key_is_read():
    """Outside the files that define and check keys; with its parent's name where the leaf's repeats."""
    defining = {"config.py", "config_checks.py", "config_rules.py"}
    package = [path for path in (ROOT / "densesiam_d2").rglob("*.py") if path.name not in defining]
    sources = [*package, ROOT / "train_net.py"]
    by_file = [_attributes(source) for source in sources]
    attributes = set().union(*by_file)
    keys = _added_keys()
    assert len(keys) > 50
    repeated = Counter(key.rsplit(".", 1)[1] for key in keys)
    unread = []
    for key in keys:
        *_, parent, leaf = key.split(".")
        end = f".{leaf}" if repeated[leaf] == 1 else f"{parent}.{leaf}"
        # A method's file reads `keys = cfg.MODEL.METHOD` and then `keys.LEAF`.
        by_local_name = any(
            f"keys.{leaf}" in names and any(name.endswith(f".{parent}") for name in names) for names in by_file
        )
        if not by_local_name and not any(attribute.endswith(end) for attribute in attributes):
            unread.append(key)
    assert not unread


def test_adding_the_keys_twice_is_harmless():
    cfg = _config()
    before = cfg.dump()
    add_densesiam_config(cfg)
    assert cfg.dump() == before


def test_stock_defaults_of_other_projects_are_untouched():
    """DeepLab's own defaults would change the backbone of every stage."""
    resnets = _config().MODEL.RESNETS
    assert resnets.STEM_TYPE == "basic"
    assert resnets.RES5_MULTI_GRID == [1, 1, 1]
    assert resnets.RES4_DILATION == 1


def test_every_rule_is_for_a_key_that_exists():
    assert set(RULES) <= set(_leaves(_config()))


def _comment(path):
    """The comment block that opens a file."""
    lines = path.read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def test_there_are_configs():
    assert len(YAMLS) >= 10


@yamls
def test_yaml_opens_with_a_command(path):
    comment = _comment(path)
    if path.name.startswith("Base-"):
        assert "Not run by itself" in comment
        return
    assert re.search(r"python (train_net\.py|-m densesiam_d2\.)", comment)
    for word in ("hardware", "time", "expected|score|published"):
        assert re.search(word, comment, re.IGNORECASE), word
    assert str(path.relative_to(ROOT)) in comment, "the command names another file"


@yamls
def test_paths_in_the_comment_exist(path):
    for name in re.findall(r"(?<![\w/])configs/[\w./-]+\.yaml", _comment(path)):
        assert (ROOT / name).is_file(), name


@yamls
def test_yaml_is_plain_data_with_two_hops_at_most(path):
    text, hops = path.read_text(), 0
    most = 3 if path.parent.name == "quick" else 2  # the quick ones shrink others
    while base := yaml.safe_load(text).get("_BASE_"):  # safe_load raises for python tags
        path, hops = path.parent / base, hops + 1
        text = path.read_text()
    assert hops <= most


@pytest.mark.parametrize("path", [p for p in YAMLS if p.parent.name != "grids"], ids=lambda path: path.stem)
def test_yaml_loads_and_can_work(path):
    from densesiam_d2.engine.setup import load_config

    own = ["DATASETS.TRAIN", "coco:own.json"] if path.parent.name == "own" else []  # these name no data set
    cfg = load_config(str(path), own)
    cfg.MODEL.DEVICE = "cuda"  # without a GPU it is "cpu", which has no fp16
    if not path.name.startswith("Base-"):
        check_config(cfg)
