"""Read a yaml and the words of a command line over the defaults, and say in one line what is wrong with them."""

import difflib
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from densesiam_d2.config import add_densesiam_config, all_keys
from densesiam_d2.yaml_keys import load_yaml

__all__ = ["load_config"]

# Keys below SOLVER that say the same thing in iterations and in epochs, and what they are the length of.
_LENGTHS = (("MAX_ITER", "EPOCHS", "train"), ("WARMUP_ITERS", "WARMUP_EPOCHS", "warm up"))

# Keys that hold a tuple of names; a single name without a tuple is accepted too.
_NAMES = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.ACCEPT")


def load_config(config_file: str, opts: list[str] = ()) -> CfgNode:
    """Read a yaml and ``KEY VALUE`` pairs over the defaults; without a GPU, set MODEL.DEVICE to "cpu".

    ``~`` in OUTPUT_DIR and MODEL.WEIGHTS is the home folder. SOLVER.MAX_ITER overrides the EPOCHS of a file further
    down in the chain of ``_BASE_``, and WARMUP_ITERS its WARMUP_EPOCHS.

    Args:
        config_file: path of a yaml.
        opts: alternating keys and values.

    Raises:
        ValueError: a key does not exist, or a value is missing or of the wrong type; the message names it and the
            nearest key. Or a yaml in the chain of ``_BASE_`` cannot be read safely, has a key twice, or is not a local
            file.
        FileNotFoundError: there is no such yaml.
    """
    cfg = get_cfg()
    add_densesiam_config(cfg)
    defaults = cfg.clone()
    if not config_file:
        raise ValueError("--config-file is missing, such as --config-file configs/pretrain.yaml")
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"--config-file {config_file}: no such file")
    flags = [word for word in opts if str(word).startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} stands after the first config key: flags come before the keys")
    if len(opts) % 2:
        raise ValueError(f"options must be KEY VALUE pairs, but there are {len(opts)} words: {' '.join(opts)}")
    _check_bases(Path(config_file))
    try:
        cfg.merge_from_other_cfg(_with_types(CfgNode(CfgNode.load_yaml_with_base(config_file)), cfg))
        for iterations, epochs, _ in _LENGTHS:
            if cfg.SOLVER[epochs] > 0 and (
                f"SOLVER.{iterations}" in opts[::2] or _nearest(Path(config_file), (epochs, iterations)) == iterations
            ):
                cfg.SOLVER[epochs] = 0.0
        cfg.merge_from_list(_as_meant(cfg, opts))
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(_explain(error, cfg, config_file)) from error
    for key in all_keys(defaults):
        default = attrgetter(key)(defaults)
        if attrgetter(key)(cfg) is None and default is not None:
            instead = f"{default!r} for none" if default in ("", (), []) else f"one, such as {default!r}"
            raise ValueError(f"{key} has no value: write {instead}")
    for iterations, epochs, what in _LENGTHS:
        if cfg.SOLVER[epochs] > 0 and f"SOLVER.{iterations}" in opts[::2]:
            raise ValueError(
                f"SOLVER.{epochs} {cfg.SOLVER[epochs]:g} and SOLVER.{iterations} {cfg.SOLVER[iterations]} both say how "
                f"long to {what}: give one of them"
            )
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS")):
        if node[key].startswith("~"):
            node[key] = str(Path(node[key]).expanduser())
    return cfg


def _check_bases(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Check that a yaml and all its ``_BASE_`` files are local and plain; detectron2 would download remote ones.

    Args:
        path: an existing yaml.
        above: resolved paths of the yamls that have it as their base.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = load_yaml(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys and values, so it is no config")
    for key in _keys_in(content):
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is no name; keys are names, such as SOLVER")
    above = (*above, path.resolve())
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base:
            raise ValueError(f"{path}: _BASE_ {base} is not a local file: copy it here and name its path")
        base_path = path.parent / Path(base).expanduser()
        if not base_path.is_file():
            raise FileNotFoundError(f"{path}: _BASE_ {base}: no such file")
        if base_path.resolve() in above:
            raise ValueError(f"{path}: _BASE_ {base} stands on this file itself: name another one")
        _check_bases(base_path, above)


def _nearest(path: Path, names: tuple[str, ...]) -> str | None:
    """Return which of some keys below SOLVER the first file in the chain of ``_BASE_`` has, the first of two."""
    with path.open(encoding="utf-8") as file:
        content = load_yaml(file)
    solver, bases = content.get("SOLVER"), content.get("_BASE_", [])
    given = [name for name in names if isinstance(solver, dict) and name in solver]
    if given:
        return given[0]
    found = [
        _nearest(path.parent / Path(base).expanduser(), names)
        for base in (bases if isinstance(bases, list) else [bases])
    ]
    return next((name for name in reversed(found) if name), None)


def _keys_in(content: dict) -> Iterator[object]:
    for key, value in content.items():
        yield key
        if isinstance(value, dict):
            yield from _keys_in(value)


def _is_one_name(value: object) -> bool:
    """Tell whether the value of a key in ``_NAMES`` is a single name, not a tuple in Python's notation."""
    return isinstance(value, str) and value.lstrip()[:1] not in ("", "(", "[")


def _with_types(content: CfgNode, cfg: CfgNode, prefix: str = "") -> CfgNode:
    """Turn 1 in a yaml into 1.0 for float keys, and a single name into a tuple for the keys of ``_NAMES``."""
    for name, value in content.items():
        default = cfg.get(name)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _with_types(value, default, f"{prefix}{name}.")
        elif type(value) is int and isinstance(default, float):
            content[name] = float(value)
        elif prefix + name in _NAMES and _is_one_name(value):
            content[name] = (value,)
    return content


def _as_meant(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Return the options of a command line with the same changes as :func:`_with_types` makes; yacs refuses both."""
    known, words = set(all_keys(cfg)), list(opts)
    for i in range(0, len(words), 2):
        key, word = words[i], str(words[i + 1])
        if key not in known:
            raise KeyError(f"Non-existent config key: {key}")  # yacs looks for SOLVER.BASE_LR.X in a number
        if isinstance(attrgetter(key)(cfg), float) and re.fullmatch(r"[+-]?\d+", word):
            words[i + 1] = f"{word}.0"
        elif key in _NAMES and _is_one_name(words[i + 1]):
            words[i + 1] = repr((word.strip("'\""),))
    return words


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error.args[0]) if error.args else str(error)
    section = re.search(r"CfgNode'> vs\. .* vs\. (.*)\) for config key: (\S+)", text, re.DOTALL)
    if section:  # the text has all its keys
        return f"{config_file} or the command line: {section[2]} is {section[1]}, but it is a section: give its keys"
    single = re.search(r"'(tuple|list)'> vs\. .*\) with values \(.* vs\. (.*)\) for config key: (\S+)", text)
    if single:
        # A shell takes the quotes off ['res2','res3'].
        words = [repr(word) if re.match("[A-Za-z]", word) else word for word in re.findall(r"[^\[\](), ]+", single[2])]
        brackets = ("(", ",)" if words else ")") if single[1] == "tuple" else "[]"
        example = ",".join(words).join(brackets)
        return f'{single[3]} is {single[2] or "empty"}, but it is a {single[1]}, such as "{example}"'
    unknown = re.search(r"Non-existent (?:config )?key: (.*)", text)
    if not unknown:
        tuples = "; data sets are a tuple, such as DATASETS.TRAIN \"('folder:/data/mine',)\""
        return f"{config_file} or the command line: {text}{tuples if 'DATASETS.' in text else ''}"
    key = unknown.group(1)
    if key in all_keys(cfg):  # with dots in a yaml
        section, _, name = key.rpartition(".")
        return f"{config_file}: {key} must not be one word: write {name} indented below {section}"
    near = difflib.get_close_matches(key, all_keys(cfg), n=1)
    return f"{config_file} or the command line: no config key {key}" + (f"; did you mean {near[0]}?" if near else "")
