from pathlib import Path

import pytest
import torch

from densesiam_d2.config_checks import check_config
from densesiam_d2.engine import load_config
from densesiam_d2.grid.schedules import low_shot_iterations, stretched
from densesiam_d2.solver import build_lr_scheduler

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("percent", "iterations"),
    [(1, 3600), (2, 3600), (5, 4500), (10, 9000), (100, 90000)],
)
def test_the_published_lengths_on_coco(percent, iterations):
    """CutLER's COCO-Semisupervised configs, batches of 16 of the 118,287 images of train2017."""
    labels = round(118_287 * percent / 100)
    assert low_shot_iterations(labels, 16) == pytest.approx(iterations, rel=1e-3)


def test_below_one_percent_the_length_is_a_square_root():
    # A quarter of 1,183 labels: half of 57,600 images, in batches of 8.
    assert low_shot_iterations(1183 // 4, 8) == pytest.approx(57_600 / 2 / 8, rel=3e-3)
    assert low_shot_iterations(100, 4) == pytest.approx(2 * low_shot_iterations(25, 4), abs=1)
    lengths = [low_shot_iterations(labels, 4) for labels in (10, 25, 50, 100, 393)]
    assert lengths == sorted(set(lengths))  # not one schedule for all
    assert low_shot_iterations(10, 4, length=0.5) == pytest.approx(lengths[0] / 2, abs=1)
    assert low_shot_iterations(10, 4, length=1e-9) == 1


def options(cfg, iterations) -> dict:
    words = stretched(cfg, iterations)
    return dict(zip(words[::2], words[1::2], strict=True))


def test_a_stretched_schedule_keeps_its_shape():
    """600 iterations, steps at 450 and 540, warm-up of 50."""
    cfg = load_config(str(CONFIGS / "own" / "mask_rcnn_R18_FPN.yaml"))
    longer, shorter = options(cfg, 2000), options(cfg, 100)
    assert (longer["SOLVER.MAX_ITER"], longer["SOLVER.STEPS"]) == ("2000", "(1500, 1800)")
    assert longer["SOLVER.WARMUP_ITERS"] == "50" and longer["SOLVER.CHECKPOINT_PERIOD"] == "400"
    assert shorter["SOLVER.STEPS"] == "(75, 90)" and shorter["SOLVER.WARMUP_ITERS"] == "10"


def test_epochs_become_iterations():
    """BYOL has 10 epochs of warm-up: a tenth of a short training."""
    cfg = load_config(str(CONFIGS / "pretrain_byol.yaml"))
    assert cfg.SOLVER.WARMUP_EPOCHS > 0
    found = options(cfg, 160)
    assert (found["SOLVER.WARMUP_ITERS"], found["SOLVER.WARMUP_EPOCHS"], found["SOLVER.STEPS"]) == ("16", "0.0", "()")


def test_shares_of_epochs_become_iterations():
    cfg = load_config(
        str(CONFIGS / "own" / "mask_rcnn_R18_FPN.yaml"), ["SOLVER.EPOCHS", "10", "SOLVER.STEPS", "(0.5,)"]
    )
    assert options(cfg, 30)["SOLVER.STEPS"] == "(15,)"


@pytest.mark.parametrize("config", ["own/mask_rcnn_R18_FPN", "own/fcn_mobilenet_v2", "pretrain_byol", "pretrain_R18"])
@pytest.mark.parametrize("iterations", [1, 3, 7, 100_000])
def test_any_length_is_a_config_that_works(config, iterations):
    path = str(CONFIGS / f"{config}.yaml")
    opts = [*stretched(load_config(path), iterations), "DATASETS.TRAIN", "any"]
    cfg = load_config(path, [*opts, "SOLVER.AMP.ENABLED", "False"])
    check_config(cfg)
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    assert iterations == cfg.SOLVER.MAX_ITER and cfg.SOLVER.EPOCHS == cfg.SOLVER.WARMUP_EPOCHS == 0
