"""Epochs become iterations, also where detectron2 scales the batch to the number of processes."""

import logging

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.engine.trainer import in_this_many_processes
from densesiam_d2.solver import build_lr_scheduler, set_epochs


def _cfg(*opts):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.IMS_PER_BATCH", 512, *opts])
    return cfg


def test_iterations_by_hand(caplog):
    cfg = _cfg("SOLVER.EPOCHS", 100.0, "SOLVER.WARMUP_EPOCHS", 10.0)
    with caplog.at_level(logging.INFO):
        set_epochs(cfg, 1_281_167)
    # 1,281,167 / 512 = 2502.2793 iterations an epoch
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (250_228, 25_023)
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS) == (0, 0)
    assert cfg.SOLVER.STEPS == (30000,)  # detectron2's default, which this schedule does not read
    assert caplog.messages == ["SOLVER.EPOCHS 100: 250,228 iterations of 512 images (1,281,167 images)"]


def test_fractions_of_an_epoch_and_of_an_iteration():
    cfg = _cfg("SOLVER.EPOCHS", 0.5, "SOLVER.WARMUP_EPOCHS", 0.01)
    set_epochs(cfg, 10_000)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (10, 1)  # 9.77, and for 0.2 at least 1
    cfg = _cfg("SOLVER.EPOCHS", 0.01)
    set_epochs(cfg, 10_000)
    assert cfg.SOLVER.MAX_ITER == 1


def test_steps_are_fractions_of_the_training():
    cfg = _cfg("SOLVER.EPOCHS", 12.0, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (0.75, 0.9))
    set_epochs(cfg, 5120)
    assert cfg.SOLVER.MAX_ITER == 120
    assert cfg.SOLVER.STEPS == (90, 108)
    assert all(type(step) is int for step in cfg.SOLVER.STEPS)


@pytest.mark.parametrize(("fractions", "expected"), [((0.8, 0.9), (4, 5)), ((0.01,), (1,))])
def test_steps_of_a_short_training_are_different_iterations(fractions, expected):
    cfg = _cfg("SOLVER.EPOCHS", 5.0, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", fractions)
    set_epochs(cfg, cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.MAX_ITER == 5
    assert expected == cfg.SOLVER.STEPS
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    build_lr_scheduler(cfg, optimizer)  # detectron2's schedule takes them


def test_without_epochs_nothing_changes():
    cfg = _cfg("SOLVER.STEPS", (60, 80))
    before = cfg.dump()
    cfg.freeze()  # nothing is even written
    set_epochs(cfg, 5120)
    assert cfg.dump() == before


def test_warm_up_alone():
    cfg = _cfg("SOLVER.WARMUP_EPOCHS", 2.0)
    cfg.SOLVER.MAX_ITER = 500
    set_epochs(cfg, 5120)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER) == (20, 500)


def test_the_result_loads_again_and_stays(tmp_path):
    opts = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (0.75, 0.9), "SOLVER.WARMUP_EPOCHS", 1.0]
    cfg = _cfg("SOLVER.EPOCHS", 12.0, *opts)
    set_epochs(cfg, 5120)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = _cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    set_epochs(again, 999)
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert (again.SOLVER.MAX_ITER, again.SOLVER.STEPS, again.SOLVER.WARMUP_ITERS) == (120, (90, 108), 10)


def test_scaling_leaves_no_period_of_zero(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    keys = ["SOLVER.REFERENCE_WORLD_SIZE", 1, "SOLVER.CHECKPOINT_PERIOD", 3]
    scaled = in_this_many_processes(_cfg(*keys, "TEST.EVAL_PERIOD", 2))
    assert (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (1, 1)
    assert in_this_many_processes(_cfg(*keys, "TEST.EVAL_PERIOD", 0)).TEST.EVAL_PERIOD == 0
    assert in_this_many_processes(_cfg(*keys, "TEST.EVAL_PERIOD", 800)).TEST.EVAL_PERIOD == 100


def test_scaling_keeps_the_share_of_the_last_rate(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    keys = ["SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.BASE_LR", 0.4, "SOLVER.BASE_LR_END", 0.04]
    solver = in_this_many_processes(_cfg(*keys)).SOLVER
    assert pytest.approx((0.1, 0.01)) == (solver.BASE_LR, solver.BASE_LR_END)


@pytest.mark.parametrize("processes", [2, 8, 32])
def test_scaling_to_processes_keeps_the_number_of_epochs(processes):
    images, epochs = 100_000, 50
    opts = ["SOLVER.EPOCHS", float(epochs), "SOLVER.WARMUP_EPOCHS", 5.0, "SOLVER.REFERENCE_WORLD_SIZE", 8]
    steps = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (0.5, 0.8)]
    cfg = _cfg(*opts, *steps)
    set_epochs(cfg, images)
    solver = DefaultTrainer.auto_scale_workers(cfg, processes).SOLVER
    assert processes * 64 == solver.IMS_PER_BATCH
    batch = max(512, solver.IMS_PER_BATCH)  # both roundings lose less than one batch
    shown = [count * solver.IMS_PER_BATCH for count in (solver.MAX_ITER, solver.WARMUP_ITERS, *solver.STEPS)]
    assert shown == pytest.approx([n * images for n in (epochs, 5, 0.5 * epochs, 0.8 * epochs)], abs=batch)
