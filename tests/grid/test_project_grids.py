"""The grids in configs/grids: their commands fit the program, and the rule of the learning rate holds."""

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


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_all_keys_of_the_commands_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for cell in cells_of(path):
        args = training_args(cell)
        if args is not None:
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


def test_other_starts_change_the_weights_only(monkeypatch):
    monkeypatch.chdir(ROOT)

    def configs(name):
        for cell in cells_of(ROOT / "configs" / "grids" / f"{name}.yaml"):
            if cell.stage == "train":
                args = training_args(cell)
                cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", "", "OUTPUT_DIR", ""])
                yield (cell.axes["dataset"], cell.axes["system"]), cfg

    from_imagenet = dict(configs("unsup_segmentation"))
    others = list(configs("unsup_segmentation_starts"))
    assert len(others) == 3 * 2 * 7  # data sets, starts, systems
    for key, cfg in others:
        assert cfg == from_imagenet[key], key
