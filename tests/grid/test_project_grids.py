"""The grids in configs/grids: their commands fit the program, and the rule of the learning rate holds."""

import argparse
import importlib
from pathlib import Path

import pytest

from densesiam_d2.config_checks import check_config
from densesiam_d2.engine import argument_parser, load_config
from densesiam_d2.grid import Cell, Grid

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "configs" / "grids").glob("*.yaml"))


def cells_of(path: Path) -> list[Cell]:
    settings = ["seed=0", *(["data=/data"] if "data" in Grid.load(path).words else [])]
    return Grid.load(path, settings).cells(Path("/out"))


def training_args(cell: Cell):
    """The parsed command line of a training, None for other commands."""
    if "train_net.py" not in cell.words:
        return None
    return argument_parser().parse_args(cell.words[cell.words.index("train_net.py") + 1 :])


class ParsedError(Exception):
    """The options of a tool are right; it does nothing else."""


def check_tool(words: list[str], monkeypatch) -> None:
    """Let a tool read its words, and look up the keys of its config."""
    place = next(i for i, word in enumerate(words) if word.startswith("densesiam_d2.tools."))
    real = argparse.ArgumentParser.parse_args

    def parse(parser, argv):
        args = real(parser, argv)
        if Path(getattr(args, "config_file", "/out")).parts[:2] != ("/", "out"):  # of a run of the grid, not yet there
            load_config(args.config_file, args.opts)
        raise ParsedError

    with monkeypatch.context() as patch, pytest.raises(ParsedError):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        importlib.import_module(words[place]).main(words[place + 1 :])


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_all_keys_of_the_commands_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for cell in cells_of(path):
        args = training_args(cell)
        if args is None:
            check_tool(list(cell.words), monkeypatch)
            continue
        cfg = load_config(args.config_file, args.opts)
        check_config(cfg, world_size=1, eval_only=False)
        output, seed = cfg.OUTPUT_DIR, cfg.SEED
        assert output == str(cell.folder) and seed == 0


def test_rates_are_scaled_with_the_batch_and_warm_ups_are_a_tenth(monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [cell for cell in cells_of(ROOT / "configs" / "grids" / "methods.yaml") if cell.stage == "pretrain"]
    for cell in cells:
        args = training_args(cell)
        recipe, cfg = load_config(args.config_file), load_config(args.config_file, args.opts)
        solver, theirs = cfg.SOLVER, recipe.SOLVER
        rate, warm_up = solver.BASE_LR, solver.WARMUP_ITERS
        assert rate == pytest.approx(theirs.BASE_LR * 64 / theirs.IMS_PER_BATCH), cell.name
        assert warm_up == (16 if theirs.WARMUP_EPOCHS else 0), cell.name
        assert solver.WARMUP_EPOCHS == 0 and solver.EPOCHS == 0
        same = solver.MAX_ITER, solver.IMS_PER_BATCH, cfg.INPUT.SSL.VIEW_SIZE, cfg.MODEL.RESNETS.DEPTH
        assert same == (156, 64, 112, 18) and not solver.AMP.ENABLED
    assert len(cells) == 10


def label_free_configs(name):
    """Yield the axes and the config, without weights and folder, of each training of a grid of segmentation."""
    for cell in cells_of(ROOT / "configs" / "grids" / f"{name}.yaml"):
        if cell.stage == "train":
            args = training_args(cell)
            yield cell.axes, load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", "", "OUTPUT_DIR", ""])


def test_other_starts_change_the_weights_only(monkeypatch):
    monkeypatch.chdir(ROOT)
    from_imagenet = {(a["dataset"], a["system"]): cfg for a, cfg in label_free_configs("unsup_segmentation")}
    others = list(label_free_configs("unsup_segmentation_starts"))
    assert len(others) == 3 * 2 * 10  # data sets, starts, systems
    for axes, cfg in others:
        assert cfg == from_imagenet[axes["dataset"], axes["system"]], axes


def test_the_recipe_from_random_weights_is_what_its_grid_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = label_free_configs("segmentation_random_start")
    measured = next(cfg for axes, cfg in cells if axes["variant"] == "densesiam_sinkhorn_long")
    words = ["OUTPUT_DIR", "", "SEED", str(measured.SEED), "SOLVER.CHECKPOINT_PERIOD", "194"]
    recipe = "configs/unsup_seg/densesiam_best_balanced_mobilenet_v2_camvid.yaml"
    assert load_config(recipe, words) == measured


def values_of(cfg, prefix=""):
    """Return the values of a config by the full names of their keys."""
    values = {}
    for key, value in cfg.items():
        values |= values_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def test_a_variation_changes_one_thing_of_its_base(monkeypatch):
    monkeypatch.chdir(ROOT)
    bases = {(a["dataset"], a["system"]): values_of(cfg) for a, cfg in label_free_configs("unsup_segmentation")}
    pseudo_label = "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL"
    expected = {
        "rate_third": {"SOLVER.BASE_LR"},
        "rate_3": {"SOLVER.BASE_LR"},
        "frozen_norm": {"MODEL.TORCHVISION.NORM"},
        "temperature": {"MODEL.DENSESIAM.PIXEL.TARGET_TEMPERATURE"},
        "sinkhorn": {f"{pseudo_label}.SINKHORN", f"{pseudo_label}.REBALANCE"},
        "region_start": {"MODEL.DENSESIAM.REGION.START"},
        "no_region": {"MODEL.DENSESIAM.REGION.LOSS_WEIGHT"},
        "kmeans_start": {f"{pseudo_label}.{key}" for key in ("START", "NORMALIZE", "LOGIT_NORM", "NUM_PROJ_CONVS")},
        "long": {"SOLVER.MAX_ITER"},
    }
    variations = list(label_free_configs("densesiam_segmentation_variations"))
    assert len(variations) == 2 * 12  # data sets, variations
    for axes, cfg in variations:
        system, what = axes["variation"].split("_", 1)
        base = bases[axes["dataset"], {"kmeans": "densesiam_kmeans"}.get(system, system)]
        changed = {key for key, value in values_of(cfg).items() if value != base[key]}
        # Without pseudo labels in the loss, the base "kmeans" has no frequency weights to take away.
        assert changed == expected[what] - ({f"{pseudo_label}.REBALANCE"} if system == "kmeans" else set()), axes
