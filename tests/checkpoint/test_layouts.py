import logging

import numpy as np
import pytest
import torch

from densesiam_d2.checkpoint import recognise
from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm  # noqa: F401  registers it
from tests.checkpoint.networks import d2_resnet, fpn_detector, prefixed, resnet_cfg, tv_resnet

ONLINE = tv_resnet(18, seed=1).state_dict()
OTHER = tv_resnet(18, seed=2).state_dict()
X = torch.zeros(1)

# What each repository's checkpoints look like: container key, tensors; the backbone to find is always ONLINE.
CHECKPOINTS = {
    "torchvision": (None, ONLINE),
    "SimSiam": (
        "state_dict",
        {**prefixed("module.encoder.", ONLINE), "module.encoder.fc.6.bias": X, "module.predictor.0.weight": X},
    ),
    "MoCo family (query encoder)": (
        "state_dict",
        {
            **prefixed("module.encoder_k.", OTHER),
            **prefixed("module.encoder_q.", ONLINE),
            "module.encoder_q.fc.0.weight": X,
            "module.queue": X,
            "module.queue_ptr": X,
        },
    ),
    "PixPro (online encoder)": (
        "model",
        {
            **prefixed("module.encoder.", ONLINE),
            **prefixed("module.encoder_k.", OTHER),
            "module.projector.linear1.weight": X,
            "module.projector_k.linear1.weight": X,
        },
    ),
    "SlotCon (teacher)": (
        "model",
        {
            **prefixed("module.encoder_q.", OTHER),
            **prefixed("module.encoder_k.", ONLINE),
            "module.projector_k.linear1.weight": X,
            "module.grouping_k.slot_embed.weight": X,
            "module.center": X,
        },
    ),
    "PiCIE (module.backbone)": (
        "state_dict",
        {**prefixed("module.backbone.", ONLINE), "module.decoder.layer1.weight": X},
    ),
    "OpenMMLab, DenseCL or DenseSiam release (backbone)": (
        "state_dict",
        {
            **prefixed("backbone.", ONLINE),
            **prefixed("encoder_k.0.", OTHER),
            **prefixed("encoder_q.0.", ONLINE),
            "decoder.layer1.weight": X,
            "queue2": X,
        },
    ),
    "DenseCL (encoder_q.0)": ("state_dict", {**prefixed("encoder_q.0.", ONLINE), **prefixed("encoder_k.0.", OTHER)}),
    "PyContrast (module.encoder)": ("model", prefixed("module.encoder.", ONLINE)),
    "PyContrast (encoder)": ("model_ema", prefixed("encoder.", ONLINE)),
    "torchvision (module)": ("state_dict", prefixed("module.", ONLINE)),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_layout_gives_its_backbone(name):
    container, tensors = CHECKPOINTS[name]
    checkpoint = {container: tensors, "epoch": 200, "optimizer": {"state": {}}} if container else tensors
    found, state = recognise(checkpoint)
    assert found == name
    assert len(state) == 100  # 20 convolutions, each with a norm of 4 tensors
    assert np.array_equal(state["stem.conv1.weight"], ONLINE["conv1.weight"].numpy())
    assert np.array_equal(state["res4.0.shortcut.norm.running_mean"], ONLINE["layer3.0.downsample.1.running_mean"])
    assert all(value.dtype == np.float32 for value in state.values())


def test_our_own_checkpoints():
    backbone = d2_resnet(18).state_dict()
    pretraining = {**prefixed("backbone.", backbone), "dense_projector.0.weight": X}
    detector = fpn_detector(18).state_dict()
    for layout, expected, tensors, prefix in (
        ("detectron2 model", backbone, {"model": pretraining, "iteration": 3}, ""),
        ("detectron2 backbone", backbone, {"model": {n: v.numpy() for n, v in backbone.items()}}, ""),
        ("detectron2 model with FPN", detector, {"model": detector}, "backbone.bottom_up."),
    ):
        found, state = recognise(tensors)
        assert found == layout
        assert len(state) == 100
        assert all(np.array_equal(value, expected[prefix + name].numpy()) for name, value in state.items())


def test_c4_detector_keeps_res5_in_its_box_head():
    from detectron2.modeling import build_model

    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    model = build_model(cfg)
    found, state = recognise({"model": model.state_dict()})
    assert found == "detectron2 model"
    assert len(state) == 53 * 5
    assert np.array_equal(state["res5.2.conv3.weight"], model.roi_heads.res5[2].conv3.weight.detach().numpy())


def test_left_out_tensors_are_counted(caplog):
    with caplog.at_level(logging.INFO, logger="densesiam_d2"):
        recognise({"state_dict": CHECKPOINTS["SimSiam"][1]})
    # fc.weight and fc.bias of the torchvision network, fc.6.bias, predictor.0.weight
    assert "left out 4 other tensors" in caplog.text
    assert "module.encoder (3)" in caplog.text and "module.predictor (1)" in caplog.text


def test_broken_and_foreign_checkpoints_are_refused():
    incomplete = {n: v for n, v in prefixed("module.encoder_q.", ONLINE).items() if "layer3.1.conv2" not in n}
    with pytest.raises(ValueError, match=r"MoCo family.*ResNet-18; missing: res4\.1\.conv2\.weight"):
        recognise({"state_dict": {**incomplete, "module.queue": X}})
    with pytest.raises(ValueError, match=r"no part of a ResNet: layer1\.0\.se\.weight"):
        recognise({**ONLINE, "layer1.0.se.weight": X})
    with pytest.raises(ValueError, match="JAX checkpoint of BYOL"):
        recognise({"experiment_state": {"online_params": {}}, "step": 1})
    with pytest.raises(ValueError, match=r"unknown checkpoint layout: 1 tensors, such as blocks\.0\.weight"):
        recognise({"model": {"blocks.0.weight": X}})
