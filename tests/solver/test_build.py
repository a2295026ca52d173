"""Optimizer groups and schedules: learning rates by hand at chosen iterations."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.engine.setup import load_config
from densesiam_d2.solver import build_lr_scheduler, build_optimizer

BASE_LR = 0.4


class Model(nn.Module):
    fixed_lr_modules = ("dense.predictor",)

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.dense = nn.ModuleDict(
            {"projector": nn.Linear(3, 3), "predictor": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))}
        )
        self.dense_other = nn.Linear(3, 3)  # shares a prefix of its name, not a module, with "dense"


def _cfg(**solver):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.SOLVER.FIX_PREDICTOR_LR = False  # on by default; what has no predictor is tested without
    cfg.SOLVER.BASE_LR = BASE_LR
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.STEPS = ()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def _rates_by_name(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def _run(cfg, iterations=None):
    """Return the learning rate of each parameter by name, before each iteration and after the last.

    As detectron2's LRScheduler hook does, the schedule steps after every iteration: after the last one too.
    """
    model = Model()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    history = []
    for _ in range(cfg.SOLVER.MAX_ITER if iterations is None else iterations):
        history.append(_rates_by_name(optimizer, model))
        optimizer.step()
        scheduler.step()
    history.append(_rates_by_name(optimizer, model))
    return history


def _rates(cfg):
    """Learning rate of the backbone at iterations 0 .. MAX_ITER."""
    return [rates["backbone.0.weight"] for rates in _run(cfg)]


def test_cosine_by_hand():
    # base * (1 + cos(pi t / T)) / 2: whole, 3/4 at a third, half at a half, 0 at the end.
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=60))
    assert rates[0] == pytest.approx(BASE_LR)
    assert rates[20] == pytest.approx(0.75 * BASE_LR)
    assert rates[30] == pytest.approx(0.5 * BASE_LR)
    assert rates[60] == pytest.approx(0, abs=1e-9)


def test_constant():
    assert _rates(_cfg(LR_SCHEDULER_NAME="WarmupConstantLR")) == pytest.approx([BASE_LR] * 101)


def test_poly_with_floor_by_hand():
    # (base - end) * (1 - t / T) ** 0.9 + end.
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_POWER=0.9, POLY_LR_CONSTANT_ENDING=0.1)
    rates = _rates(cfg)
    assert rates[0] == pytest.approx(0.4)
    assert rates[50] == pytest.approx(0.36 * 0.5**0.9 + 0.04)  # 0.2329
    assert rates[100] == pytest.approx(0.04)


def test_poly_without_floor_ends_at_zero():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_POWER=2.0))
    assert rates[50] == pytest.approx(0.25 * BASE_LR)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_multi_step_falls_through_to_detectron2():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(60, 80), GAMMA=0.1))
    assert [rates[i] for i in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [BASE_LR] * 2 + [0.1 * BASE_LR] * 2 + [0.01 * BASE_LR] * 2
    )


def test_a_step_at_the_end_changes_nothing():
    steps = {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "GAMMA": 0.1}
    assert _rates(_cfg(**steps, STEPS=(60, 100))) == _rates(_cfg(**steps, STEPS=(60,)))


def test_fixed_gamma_steps_by_hand():
    # Three decays to a half: a constant rate in each of four quarters.
    name = "WarmupStepWithFixedGammaLR"
    rates = _rates(_cfg(LR_SCHEDULER_NAME=name, NUM_DECAYS=3, GAMMA=0.5, MAX_ITER=40))
    assert [rates[i] for i in (0, 9, 10, 19, 20, 29, 30, 39)] == pytest.approx(
        [BASE_LR] * 2 + [BASE_LR / 2] * 2 + [BASE_LR / 4] * 2 + [BASE_LR / 8] * 2
    )


def test_a_warmup_as_long_as_the_training_is_warned_of(caplog):
    _rates(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=50, WARMUP_ITERS=49))
    assert not caplog.messages
    _rates(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=50, WARMUP_ITERS=50))
    (text,) = caplog.messages
    assert text.startswith("SOLVER.WARMUP_ITERS is 50 and MAX_ITER 50: the rate never reaches BASE_LR")


@pytest.mark.parametrize("name", ["WarmupConstantLR", "WarmupMultiStepLR"])
def test_linear_warmup_by_hand(name):
    # From 0.1 at iteration 0 linearly to 1 at iteration 10: 0.1 + 0.9 * t / 10.
    rates = _rates(_cfg(LR_SCHEDULER_NAME=name, WARMUP_ITERS=10, WARMUP_FACTOR=0.1, STEPS=(90,)))
    assert rates[0] == pytest.approx(0.1 * BASE_LR)
    assert rates[5] == pytest.approx(0.55 * BASE_LR)
    assert rates[10] == pytest.approx(BASE_LR)


def test_a_whole_cosine_after_the_warmup_by_hand():
    # PixPro's schedule: from a hundredth in 20 iterations, then base to end as half a cosine over the other 80.
    rates = _rates(
        _cfg(
            LR_SCHEDULER_NAME="WarmupCosineLR",
            BASE_LR_END=0.1,
            WARMUP_ITERS=20,
            WARMUP_FACTOR=0.01,
            RESCALE_INTERVAL=True,
        )
    )
    assert [rates[i] for i in (0, 10, 20, 60, 100)] == pytest.approx([0.004, 0.202, 0.4, 0.25, 0.1])


def test_a_rescaled_schedule_in_a_training_shorter_than_its_warmup():
    """The last iteration alone follows the warm-up: from a tenth to the whole rate in one, then to the end, 0."""
    cfg = _cfg(
        LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=2, WARMUP_ITERS=500, WARMUP_FACTOR=0.1, RESCALE_INTERVAL=True
    )
    assert _rates(cfg) == pytest.approx([0.1 * BASE_LR, BASE_LR, 0])


def test_unknown_schedule():
    with pytest.raises(ValueError, match="WarmupNoneLR"):
        _rates(_cfg(LR_SCHEDULER_NAME="WarmupNoneLR"))


@pytest.mark.parametrize("warmup", [0, 10])
def test_fixed_modules_keep_the_base_rate_while_others_fall(warmup):
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupCosineLR", FIX_PREDICTOR_LR=True, WARMUP_ITERS=warmup)
    for iteration, rates in enumerate(_run(cfg)):
        if iteration < warmup:
            continue
        others = BASE_LR * (1 + math.cos(math.pi * iteration / 100)) / 2
        for name, rate in rates.items():
            expected = BASE_LR if name.startswith("dense.predictor.") else others
            assert rate == pytest.approx(expected, abs=1e-9), (iteration, name)


def test_fixed_modules_are_not_warmed_up():
    cfg = _cfg(FIX_PREDICTOR_LR=True, WARMUP_ITERS=10, WARMUP_FACTOR=0.1, MAX_ITER=20)
    for rates in _run(cfg):
        assert rates["dense.predictor.0.weight"] == BASE_LR
    assert _run(cfg, 0)[0]["dense.projector.weight"] == pytest.approx(0.1 * BASE_LR)


def test_fixed_name_means_a_module_not_a_prefix(monkeypatch):
    monkeypatch.setattr(Model, "fixed_lr_modules", ("dense",))
    rates = _run(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", FIX_PREDICTOR_LR=True))[-1]
    fixed = {name for name, rate in rates.items() if rate == BASE_LR}
    assert fixed == {name for name in rates if name.startswith("dense.")}
    assert "dense_other.weight" not in fixed


def test_name_without_parameters_is_an_error_of_the_method(monkeypatch):
    monkeypatch.setattr(Model, "fixed_lr_modules", ("dense.predictor", "predictor"))
    with pytest.raises(AssertionError, match=r"Model\.fixed_lr_modules names 'predictor', which has no parameters"):
        build_optimizer(_cfg(FIX_PREDICTOR_LR=True), Model())


def test_predictors_are_fixed_unless_the_config_says_no():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    assert {group.get("fix_lr") for group in build_optimizer(cfg, Model()).param_groups} == {True, False}
    assert all("fix_lr" not in group for group in build_optimizer(cfg, nn.Linear(2, 3)).param_groups)
    cfg.SOLVER.FIX_PREDICTOR_LR = False
    assert all("fix_lr" not in group for group in build_optimizer(cfg, Model()).param_groups)


def _in_a_process_group(rank, init_file):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=1)
    model = nn.parallel.DistributedDataParallel(Model())
    optimizer = build_optimizer(_cfg(FIX_PREDICTOR_LR=True), model)
    rates = {p: group["fix_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[model.module.dense["predictor"][0].weight] and not rates[model.module.dense["projector"].weight]
    dist.destroy_process_group()


def test_model_inside_of_ddp(tmp_path):
    mp.spawn(_in_a_process_group, args=(str(tmp_path / "init"),), nprocs=1)


def test_grouping_keeps_weight_decay_and_loses_no_parameter():
    cfg = _cfg(FIX_PREDICTOR_LR=True, WEIGHT_DECAY=0.01, WEIGHT_DECAY_NORM=0.0, BIAS_LR_FACTOR=2.0)
    model = Model()
    optimizer = build_optimizer(cfg, model)
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {
        names[id(p)]: (g["weight_decay"], g["lr"], g["fix_lr"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert settings["backbone.0.weight"] == (0.01, 0.4, False)
    assert settings["backbone.0.bias"] == (0.01, 0.8, False)
    assert settings["backbone.1.weight"] == (0.0, 0.4, False)  # a norm
    assert settings["dense.predictor.0.weight"] == (0.01, 0.4, True)
    assert settings["dense.predictor.1.weight"] == (0.0, 0.4, True)  # a norm
    assert settings["dense.projector.weight"] == (0.01, 0.4, False)
    assert sorted(names.values()) == sorted(settings)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)  # none twice


def test_backbone_factor_scales_the_whole_schedule_of_the_backbone_only():
    plain, scaled = (_run(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", **key)) for key in ({}, {"BACKBONE_LR_FACTOR": 0.1}))
    assert {name for name in plain[0] if name.startswith("backbone.")}
    for before, after in zip(plain, scaled, strict=True):
        for name, rate in before.items():
            assert after[name] == pytest.approx(rate * (0.1 if name.startswith("backbone.") else 1))


@pytest.mark.parametrize("config", ["quick/mask_rcnn_instant_test", "quick/fcn_instant_test"])
def test_the_factor_of_the_last_layers_is_for_the_predictors_of_heads_only(config):
    cfg = load_config(str(Path(__file__).parents[2] / "configs" / f"{config}.yaml"), ["MODEL.DEVICE", "cpu"])
    cfg.SOLVER.BASE_LR, cfg.SOLVER.LAST_LAYERS_LR_FACTOR, cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1, 4.0, 0.5
    model = build_model(cfg)
    rates = _rates_by_name(build_optimizer(cfg, model), model)
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    doubled = _rates_by_name(build_optimizer(cfg, model), model)
    assert all(doubled[name] == (2 * rate if name.endswith(".bias") else rate) for name, rate in rates.items())
    last = {
        "quick/mask_rcnn_instant_test": ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"],
        "quick/fcn_instant_test": ["main.predictor", "aux.predictor"],
    }[config]
    head = "roi_heads" if "rcnn" in config else "sem_seg_head"
    expected = {f"{head}.{layer}.{kind}" for layer in last for kind in ("weight", "bias")}
    assert {name for name, rate in rates.items() if rate == pytest.approx(0.4)} == expected
    assert {rate for name, rate in rates.items() if name.startswith("backbone.")} == {0.05}
    others = {rate for name, rate in rates.items() if name not in expected and not name.startswith("backbone.")}
    assert others == {0.1}


def test_a_predictor_of_pretraining_is_no_last_layer():
    assert {rate for rate in _run(_cfg(LAST_LAYERS_LR_FACTOR=4.0), 1)[0].values()} == {BASE_LR}


def test_bias_factor_of_a_fixed_module_is_kept():
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupCosineLR", FIX_PREDICTOR_LR=True, BIAS_LR_FACTOR=2.0)
    assert _run(cfg)[-1]["dense.predictor.0.bias"] == pytest.approx(2 * BASE_LR)


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupPolyLR", "WarmupConstantLR"])
def test_saved_state_continues_the_schedule(name):
    cfg = _cfg(LR_SCHEDULER_NAME=name, FIX_PREDICTOR_LR=True, MAX_ITER=20, WARMUP_ITERS=4)
    whole = _run(cfg)

    def parts():
        model = Model()
        optimizer = build_optimizer(cfg, model)
        return model, optimizer, build_lr_scheduler(cfg, optimizer)

    _, optimizer, scheduler = parts()
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    model, optimizer, scheduler = parts()
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    for iteration in range(7, 20):
        assert _rates_by_name(optimizer, model) == pytest.approx(whole[iteration])
        optimizer.step()
        scheduler.step()


def test_a_resumed_schedule_has_this_runs_rate():
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupCosineLR", FIX_PREDICTOR_LR=True, MAX_ITER=20)
    stored = build_lr_scheduler(cfg, build_optimizer(cfg, Model()))
    stored.optimizer.step()
    for _ in range(10):
        stored.step()
    cfg.SOLVER.BASE_LR = BASE_LR / 10
    model = Model()
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer).load_state_dict(stored.state_dict())
    rates = _rates_by_name(optimizer, model)
    assert {rates[name] for name in rates if name.startswith("dense.predictor")} == {BASE_LR / 10}
    # Half of the cosine is done: (1 + cos(pi / 2)) / 2.
    assert [rates[name] for name in rates if "predictor" not in name] == pytest.approx(
        [BASE_LR / 20] * (len(rates) - 4)
    )


@pytest.mark.parametrize("optimizer", ["SGD", "LARS"])
def test_gradient_clipping_survives_the_grouping(optimizer):
    cfg = _cfg(FIX_PREDICTOR_LR=True, OPTIMIZER=optimizer)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0, 0.0, 0.0
    model = Model()
    optimizer = build_optimizer(cfg, model)
    before = model.dense["predictor"][0].bias.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    # The gradient 3 is clipped to 0.5: a step of 0.4 * 0.5.
    assert torch.allclose(before - model.dense["predictor"][0].bias, torch.full_like(before, 0.2), atol=1e-6)
