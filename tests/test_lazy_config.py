"""configs/lazy through the loop of detectron2's tools/lazyconfig_train_net.py: the same as the yaml, and it trains."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.layers import get_norm
from detectron2.modeling import build_model

from densesiam_d2.checkpoint import read_checkpoint
from densesiam_d2.data import TwoViewDatasetMapper
from densesiam_d2.engine import load_config
from densesiam_d2.tools.export_backbone import main

CONFIGS = Path(__file__).parents[1] / "configs"


def lazy_config():
    return LazyConfig.load(str(CONFIGS / "lazy" / "pretrain_R50.py"))


def settings(views):
    """Return type and attributes of each augmentation of each view."""
    return [
        [
            (type(augmentation), {k: list(v) if isinstance(v, Sequence) else v for k, v in vars(augmentation).items()})
            for augmentation in view
        ]
        for view in views
    ]


def test_it_builds_what_the_yaml_builds():
    ours, cfg = lazy_config(), load_config(str(CONFIGS / "pretrain.yaml"), ["MODEL.DEVICE", "cpu"])
    model, expected = instantiate(ours.model), build_model(cfg)
    assert str(model) == str(expected)
    for name in ("grid_size", "sample_features", "pixel_weight", "region_weight", "region_start", "in_feature"):
        assert getattr(model, name) == getattr(expected, name), name
    for name in ("loss", "temperature", "stop_gradient"):
        assert getattr(model.region, name) == getattr(expected.region, name), name
    assert torch.equal(model.pixel_mean, expected.pixel_mean) and torch.equal(model.pixel_std, expected.pixel_std)
    assert not model.backbone.res2[0].conv3.norm.weight.any()  # as SimSiam starts

    mapper, expected = instantiate(ours.dataloader.train.mapper), TwoViewDatasetMapper(cfg)
    for name in ("pre_crop", "min_overlap", "redraw", "color_first", "color_on_device", "white_level", "patch_grid"):
        assert getattr(mapper, name) == getattr(expected, name), name
    assert settings(mapper.geometric) == settings(expected.geometric)
    colors = [[augmentation for augmentation in view if augmentation.prob] for view in expected.photometric]
    assert settings(mapper.photometric) == settings(colors)  # without solarisation, whose probability is 0

    solver = cfg.SOLVER
    assert (ours.optimizer.lr, ours.optimizer.momentum) == (solver.BASE_LR, solver.MOMENTUM)
    assert ours.optimizer.weight_decay == ours.optimizer.params.weight_decay_norm == solver.WEIGHT_DECAY
    assert ours.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    assert ours.train.max_iter == pytest.approx(solver.EPOCHS * 1_281_167 / solver.IMS_PER_BATCH, abs=1)


def test_two_iterations(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        cv2.imwrite(str(photos / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (80, 96, 3), np.uint8))
    words = [
        f"train.output_dir={tmp_path}",
        "train.device=cpu",
        "train.max_iter=2",
        f"dataloader.train.dataset.names=['folder:{photos}']",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        *(f"dataloader.train.mapper.geometric.{view}.augs.0.size=64" for view in (0, 1)),
        "model.backbone.stages.depth=18",
        "model.backbone.stem.norm=BN",
        "model.dense_heads.in_dim=512",
        "model.region_heads.in_dim=512",
    ]
    cfg = LazyConfig.apply_overrides(lazy_config(), words)
    cfg.model.dense_heads.norm = cfg.model.region_heads.norm = partial(get_norm, "BN")  # there is no SyncBN on a CPU
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))

    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, optimizer=optimizer, trainer=trainer)
    scheduler = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
    trainer.register_hooks([scheduler, hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)])
    before = model.backbone.stem.conv1.weight.clone()
    trainer.train(0, cfg.train.max_iter)
    assert not torch.equal(model.backbone.stem.conv1.weight, before)
    assert {"loss_pixel", "loss_region", "ssl/z_std"} <= trainer.storage.latest().keys()

    assert main(["--input", str(tmp_path / "model_final.pth"), "--output", str(tmp_path / "backbone.pkl"),
                 "--config-file", str(CONFIGS / "pretrain_R18.yaml")]) == 0  # fmt: skip
    metadata = read_checkpoint(tmp_path / "backbone.pkl")["metadata"]
    assert metadata["pixel_format"] == "RGB" and metadata["depth"] == 18
