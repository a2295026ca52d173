import logging
import re

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from densesiam_d2.checkpoint import known_metadata, recognise
from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm  # noqa: F401  registers it
from densesiam_d2.tools.export_backbone import main as export_backbone
from tests.checkpoint.networks import d2_resnet, fpn_detector, prefixed, resnet_cfg
from tests.checkpoint.published import (
    CHECKPOINTS,
    ONLINE,
    ONLINE_50,
    OTHER,
    hugging_face,
    numbered,
    simclr_v2,
    with_stem,
)

X = torch.zeros(1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_layout_gives_its_backbone(name):
    layout, checkpoint = CHECKPOINTS[name]
    found = recognise(checkpoint)
    assert found.layout == layout and found.torchvision
    assert len(found.state) == 100  # 20 convolutions, each with a norm of 4 tensors
    assert np.array_equal(found.state["stem.conv1.weight"], ONLINE["conv1.weight"].numpy())
    assert np.array_equal(
        found.state["res4.0.shortcut.norm.running_mean"], ONLINE["layer3.0.downsample.1.running_mean"]
    )
    assert all(value.dtype == np.float32 for value in found.state.values())


def test_the_numbers_are_those_of_real_sequentials():
    children = dict(torchvision.models.resnet18(weights=None).named_children())
    lightly = nn.Sequential(*list(children.values())[:-1])
    assert numbered(ONLINE).keys() == lightly.state_dict().keys()
    stem = nn.Sequential(children["conv1"], children["bn1"], children["relu"], children["maxpool"])
    blocks = nn.Sequential(stem, *(children[f"layer{i}"] for i in range(1, 5)))
    assert with_stem(ONLINE, "", "0", "1").keys() == blocks.state_dict().keys()


def test_wrapped_networks_keep_their_names():
    """Names as torch itself makes them, of a network that is compiled and then given to DDP's elder brother."""
    model = nn.DataParallel(torch.compile(torchvision.models.resnet18(weights=None)))
    assert "module._orig_mod.layer1.0.conv1.weight" in model.state_dict()
    assert recognise({"model": model.state_dict()}).layout == "torchvision names below model"


def test_our_own_checkpoints():
    backbone = d2_resnet(18).state_dict()
    pretraining = {**prefixed("backbone.", backbone), "dense_projector.0.weight": X}
    detector = fpn_detector(18).state_dict()
    for where, expected, checkpoint, prefix in (
        ("below model.backbone", backbone, {"model": pretraining, "iteration": 3}, ""),
        ("below model", backbone, {"model": {n: v.numpy() for n, v in backbone.items()}}, ""),
        ("below model.backbone.bottom_up", detector, {"model": detector}, "backbone.bottom_up."),
    ):
        found = recognise(checkpoint)
        assert found.layout == f"detectron2 names {where}" and not found.torchvision
        assert len(found.state) == 100
        assert all(np.array_equal(value, expected[prefix + name].numpy()) for name, value in found.state.items())


def test_c4_detector_keeps_res5_in_its_box_head():
    from detectron2.modeling import build_model

    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    model = build_model(cfg)
    found = recognise({"model": model.state_dict()})
    assert found.layout == "detectron2 names below model.backbone"
    assert len(found.state) == 53 * 5
    assert np.array_equal(found.state["res5.2.conv3.weight"], model.roi_heads.res5[2].conv3.weight.detach().numpy())


def test_left_out_tensors_are_counted(caplog):
    with caplog.at_level(logging.INFO, logger="densesiam_d2"):
        recognise(CHECKPOINTS["SimSiam"][1])
    # fc.weight and fc.bias of the torchvision network, fc.6.bias, predictor.0.weight, a momentum
    assert "left out 5 other tensors" in caplog.text
    assert "state_dict.encoder (3)" in caplog.text and "state_dict.predictor (1)" in caplog.text


def test_the_choice_of_a_method_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="densesiam_d2"):
        recognise(CHECKPOINTS["DINO"][1])
    assert "DINO (teacher): took the ResNet below teacher.backbone of those below student.backbone, below teacher" in (
        caplog.text
    )


UNKNOWN = {"left": prefixed("net.", ONLINE), "right": prefixed("module.net.", OTHER)}


def test_of_several_the_user_chooses():
    with pytest.raises(
        ValueError, match=r"2 different ResNets, below left\.net, below right\.net; choose one with --pre[^\n]+$"
    ):
        recognise(UNKNOWN)
    for prefix in ("right.net", "right", "right.module.net."):
        assert np.array_equal(recognise(UNKNOWN, prefix).state["stem.conv1.weight"], OTHER["conv1.weight"].numpy())
    student = recognise(CHECKPOINTS["DINO"][1], prefix="student")
    assert np.array_equal(student.state["stem.conv1.weight"], OTHER["conv1.weight"].numpy())
    with pytest.raises(ValueError, match=r"--prefix up: no ResNet lies there, but below left\.net, below right\.net"):
        recognise(UNKNOWN, "up")
    with pytest.raises(ValueError, match="2 different ResNets"):
        recognise(UNKNOWN, "net")


def test_a_name_that_wrappers_have_too_is_taken_literally():
    both = {"state_dict": ONLINE, "module.state_dict": OTHER}
    for prefix, expected in (("state_dict", ONLINE), ("module.state_dict", OTHER)):
        assert np.array_equal(recognise(both, prefix).state["stem.conv1.weight"], expected["conv1.weight"].numpy())


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"student": prefixed("backbone.", OTHER), "teacher": {**prefixed("backbone.", ONLINE), "head.weight": X}},
        {"model": prefixed("encoder.", OTHER), "model_ema": prefixed("encoder.", ONLINE)},
    ],
    ids=["mean teacher", "average of a model"],
)
def test_a_teacher_alone_does_not_tell_the_method(checkpoint):
    with pytest.raises(ValueError, match=r"2 different ResNets, .*; choose one with --prefix"):
        recognise(checkpoint)


@pytest.mark.parametrize("arch", ["resnetblur18", "resnetaa50"])
def test_networks_with_the_tensors_but_not_the_layers_of_a_resnet_are_refused(arch):
    with pytest.raises(ValueError, match=f"its arch is {arch}, which smooths before strides"):
        recognise({"arch": arch, "state_dict": ONLINE})


CAFFE = """
model = dict(backbone=dict(type='ResNet', style='caffe'))
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
bbox_coder = dict(target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2])
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CAFFE, ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True)),
        (  # tuples, beside the deviation of random weights
            "style='caffe', init_cfg=dict(type='Normal', std=0.01), mean=(\n103.53,\n116.28,\n123.675,\n), std=(1.0, "
            "1.0, 1.0), bgr_to_rgb=False",
            ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True),
        ),
        (
            "backbone=dict(style='pytorch'), data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, "
            "57.12, 57.375], bgr_to_rgb=True)",
            ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False),
        ),
        (  # MMSelfSup: values of 0 to 1
            "img_norm_cfg = dict(mean=[0.5, 0.4, 0.2], std=[0.2, 0.2, 0.4]), style='pytorch', to_rgb=True",
            ("RGB", [127.5, 102.0, 51.0], [51.0, 51.0, 102.0], False),
        ),
        (  # no flag: the order of the means tells
            "style='pytorch', data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395])",
            ("BGR", [103.53, 116.28, 123.675], [57.375, 57.12, 58.395], False),
        ),
        (  # JSON
            '"style": "caffe", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": false',
            ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True),
        ),
        ({"style": "caffe", "to_rgb": False}, ("BGR", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)),
    ],
)
def test_the_config_inside_a_file_of_openmmlab_says_which_images_it_takes(text, expected):
    checkpoint = {"state_dict": prefixed("backbone.", ONLINE), "meta": {"config": text}}
    facts = known_metadata(checkpoint, recognise(checkpoint))
    assert tuple(facts[key] for key in ("pixel_format", "pixel_mean", "pixel_std", "stride_in_1x1")) == expected


def test_such_a_config_that_contradicts_itself_is_refused():
    checkpoint = {"state_dict": ONLINE, "meta": {"cfg": "a(to_rgb=True), b(to_rgb=False)"}}
    with pytest.raises(ValueError, match=r"has several values of pixel_format, such as RGB, BGR; .* by --config-file"):
        known_metadata(checkpoint, recognise(checkpoint))


@pytest.mark.parametrize("value", ["IMAGENET_MEAN", "[0.5]", "(0.5,) * 3", "[0.5 * 255, 0.4 * 255, 0.2 * 255]", "None"])
def test_a_mean_that_is_not_three_plain_numbers_is_asked_about(tmp_path, capsys, value):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": ONLINE, "meta": {"config": f"dict(mean={value}, std=[1.0, 1.0, 1.0])"}}, path)
    (tmp_path / "c.yaml").write_text(resnet_cfg(18).dump())
    command = ["--input", str(path), "--output", str(tmp_path / "b.pkl")]
    assert export_backbone(command) == 2
    assert re.search("x.pth: the config in its meta has the mean or std .* by --config-file", capsys.readouterr().err)
    assert export_backbone([*command, "--config-file", str(tmp_path / "c.yaml")]) == 0


def test_the_one_at_the_top_can_be_chosen():
    both = {**ONLINE, "ema": OTHER}
    with pytest.raises(ValueError, match="2 different ResNets, at the top, below ema"):
        recognise(both)
    assert np.array_equal(recognise(both, "").state["stem.conv1.weight"], ONLINE["conv1.weight"].numpy())


def test_equal_networks_are_one():
    assert recognise({"a": ONLINE, "b": {n: v.clone() for n, v in ONLINE.items()}}).layout.endswith("below a")


def test_the_name_of_the_method_counts_before_the_first_step_too():
    """When student and teacher are still equal."""
    found = recognise({**CHECKPOINTS["DINO"][1], "student": prefixed("backbone.", ONLINE)})
    assert found.layout == "DINO (teacher), torchvision names below teacher.backbone"


def test_a_whole_network_is_taken_rather_than_a_part_of_one(caplog):
    part = {name: value for name, value in OTHER.items() if "layer2.1" not in name}
    assert recognise({"a": part, "b": ONLINE}).layout == "torchvision names below b"
    assert "took the ResNet below b, the only one of 2 that is whole: the ResNet below a: not a whole" in caplog.text


@pytest.mark.parametrize("names", [("module.backbone", "backbone"), ("backbone", "module.backbone")])
def test_of_two_names_that_differ_by_a_wrapper_none_is_lost(names):
    """As a script leaves them that puts new weights into the file of a wrapped network."""
    both = {**prefixed(f"{names[0]}.", ONLINE), **prefixed(f"{names[1]}.", OTHER)}
    with pytest.raises(ValueError, match=rf"2 different ResNets, below {names[0]}, below {names[1]};"):
        recognise(both)
    for name, expected in zip(names, (ONLINE, OTHER), strict=True):
        assert np.array_equal(recognise(both, name).state["stem.conv1.weight"], expected["conv1.weight"].numpy())
    with pytest.raises(ValueError, match=r"2 different ResNets, below backbone, below again\.backbone;"):
        recognise({**prefixed("backbone.", ONLINE), "backbone": OTHER})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read(dtype):
    state = recognise({n: v.to(dtype) if v.is_floating_point() else v for n, v in ONLINE.items()}).state
    expected = ONLINE["layer2.1.conv1.weight"].to(dtype).float().numpy()
    assert np.array_equal(state["res3.1.conv1.weight"], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_diverged_is_refused(value):
    broken = {**ONLINE, "layer3.0.conv1.weight": ONLINE["layer3.0.conv1.weight"].clone()}
    broken["layer3.0.conv1.weight"][5, 4, 1, 2] = value
    with pytest.raises(ValueError, match=r"net\.layer3\.0\.conv1\.weight holds NaN or infinite values \(1 of 100 "):
        recognise({"net": prefixed("module.", broken)})


def test_negative_variances_are_refused():
    broken = {**ONLINE, "bn1.running_var": -ONLINE["bn1.running_var"] - 1}
    with pytest.raises(ValueError, match=r"^bn1\.running_var holds negative variances"):
        recognise(broken)


def test_quantized_weights_are_refused():
    whole_numbers = {name: value.to(torch.int8) for name, value in ONLINE.items()}
    with pytest.raises(ValueError, match=r"^conv1\.weight is torch\.int8, so the network is quantized"):
        recognise(whole_numbers)


def test_broken_and_foreign_checkpoints_are_refused():
    incomplete = {n: v for n, v in prefixed("module.encoder_q.", ONLINE).items() if "layer3.1.conv2" not in n}
    missing = r"below state_dict\.encoder_q: not a whole ResNet-18; missing: res4\.1\.conv2\.weight"
    with pytest.raises(ValueError, match=missing):
        recognise({"state_dict": {**incomplete, "module.queue": X}})
    with pytest.raises(ValueError, match=missing):  # and the key encoder, though whole, is not taken in its place
        recognise({"state_dict": {**incomplete, **prefixed("module.encoder_k.", OTHER), "module.queue": X}})
    for deep in ("stem.3", "conv1.3", "stem.conv2"):
        with pytest.raises(ValueError, match=r"missing: stem\.conv1\.weight; it has a deep stem"):
            recognise({"net": {**{n: v for n, v in ONLINE.items() if n != "conv1.weight"}, f"{deep}.weight": X}})
    with pytest.raises(ValueError, match=r"no part of a ResNet: layer1\.0\.se\.weight"):
        recognise({**ONLINE, "layer1.0.se.weight": X})
    with pytest.raises(ValueError, match=r"no part of a ResNet: layer1\.0\.se\.weight"):
        recognise({**numbered(ONLINE), "4.0.se.weight": X})
    with pytest.raises(ValueError, match=r"no part of a ResNet: layer1\.0\.attention\.weight"):
        recognise({**hugging_face(ONLINE), "encoder.stages.0.layers.0.attention.weight": X})
    with pytest.raises(ValueError, match=r"no part of a ResNet: layer2\.1\.net\.2\.main_conv\.0\.weight"):
        recognise({**simclr_v2(ONLINE_50), "net.2.blocks.1.net.2.main_conv.0.weight": X})  # selective kernels
    with pytest.raises(ValueError, match=r"no ResNet among its 1 tensors, such as model\.blocks\.0\.weight"):
        recognise({"model": {"blocks.0.weight": X}})
