"""Exported backbones in torchvision, timm and mmpretrain: the documented lines load them, and features are equal."""

import re

import pytest
import torch
import torchvision
from torch import nn

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    rename_in_order,
    save_backbone,
)
from densesiam_d2.modeling.backbone import TorchvisionBackbone
from densesiam_d2.tools.export_backbone import main
from tests.checkpoint.networks import d2_resnet, resnet_cfg
from tests.modeling.backbone.test_loading import rgb_cfg
from tests.modeling.backbone.test_torchvision_backbone import STAGES, with_statistics


class Model(nn.Module):
    """What is exported of any model: its backbone, a whole torchvision network with random statistics."""

    def __init__(self, network):
        super().__init__()
        self.backbone = TorchvisionBackbone(network=network, out_features=STAGES)
        own = self.backbone.state_dict()
        state = with_statistics(network).state_dict()
        self.backbone.load_state_dict({name: state[name] for name in own})
        self.eval()


def exported_resnet(folder, depth):
    """Export a ResNet of detectron2 for torchvision, and return it with the path of the file."""
    ours = d2_resnet(depth)
    save_backbone(folder / "backbone.pkl", backbone_state(ours), backbone_metadata(resnet_cfg(depth), 1))
    assert main(["--input", str(folder / "backbone.pkl"), "--format", "torchvision",
                 "--output", str(folder / "backbone.pth")]) == 0  # fmt: skip
    return ours, folder / "backbone.pth"


def exported_network(folder, network):
    """The same for another CNN, from a whole checkpoint of a run."""
    model = Model(network)
    CheckedCheckpointer(model, str(folder), expect=expected_metadata(rgb_cfg(network))).save("model_final")
    assert main(["--input", str(folder / "model_final.pth"), "--format", "torchvision",
                 "--output", str(folder / "backbone.pth")]) == 0  # fmt: skip
    return model.backbone, folder / "backbone.pth"


@torch.no_grad()
def assert_same(ours, theirs, stages=STAGES):
    """Compare feature maps; ``theirs`` maps images to one map per stage."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features = ours(images)
    for stage, other in zip(stages, theirs(images), strict=True):
        assert other.std() > 1e-3  # a dead network would be equal to anything dead
        torch.testing.assert_close(features[stage], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["mobilenet_v2", "convnext_tiny"])
def test_torchvision(tmp_path, network):
    ours, path = exported_network(tmp_path, network)
    net = torchvision.models.get_model(network).eval()
    keys = net.load_state_dict(torch.load(path), strict=False)
    assert {name.split(".")[0] for name in keys.missing_keys if "num_batches" not in name} == {"classifier"}
    assert not keys.unexpected_keys
    assert_same(ours, lambda images: [net.features(images)], ["res5"])


def test_another_network_in_all_formats(tmp_path, capsys):
    ours, _ = exported_network(tmp_path, "mobilenet_v2")
    command = ["--input", str(tmp_path / "model_final.pth"), "--output"]
    assert main([*command, str(tmp_path / "backbone.pkl")]) == 0
    printed = capsys.readouterr().out
    assert "recognised mobilenet_v2 below model.backbone" in printed and "network: mobilenet_v2" in printed
    assert "exports" not in printed
    # Each file is an input again; a file of others needs a config that names the network.
    for source, options in [("backbone.pkl", []), ("backbone.pth", ["--config-file", str(tmp_path / "c.yaml")])]:
        (tmp_path / "c.yaml").write_text(rgb_cfg("mobilenet_v2").dump())
        again = tmp_path / f"again_{source}.safetensors"
        assert (
            main(["--input", str(tmp_path / source), "--format", "safetensors", "--output", str(again), *options]) == 0
        )
        model = Model("mobilenet_v2")
        nn.init.zeros_(model.backbone.features[0][0].weight)
        expect = expected_metadata(rgb_cfg("mobilenet_v2"))
        CheckedCheckpointer(model, expect=expect).resume_or_load(str(again), resume=False)
        assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v.repeat(2, *[1] * (v.dim() - 1)) if v.dim() else v,
            r"has the shape \(64, 3, 3, 3\), that",
        ),
        (lambda v: v.to(torch.int8), "is torch.int8, so the network is quantized"),
        (lambda v: v * torch.nan if v.is_floating_point() else v, "holds NaN or infinite values"),
    ],
    ids=["wider", "whole numbers", "diverged"],
)
def test_other_numbers_in_another_network_are_refused(tmp_path, capsys, change, message):
    state = with_statistics("mobilenet_v2").state_dict()
    torch.save({name: change(value) for name, value in state.items()}, tmp_path / "x.pth")
    (tmp_path / "c.yaml").write_text(rgb_cfg("mobilenet_v2").dump())
    command = ["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]
    assert main([*command, "--config-file", str(tmp_path / "c.yaml")]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "b.pkl").exists()


@pytest.mark.parametrize(("prefix", "added"), [("", 0), ("net", 1), ("average.net", 1)])
def test_where_another_network_lies(tmp_path, prefix, added):
    state = with_statistics("mobilenet_v2").state_dict()
    ema = {f"average.net.{name}": value + 1 for name, value in state.items()}
    torch.save({**state, **ema}, tmp_path / "two.pth")
    (tmp_path / "c.yaml").write_text(rgb_cfg("mobilenet_v2").dump())
    command = ["--input", str(tmp_path / "two.pth"), "--format", "torchvision", "--output", str(tmp_path / "b.pth")]
    assert main([*command, "--config-file", str(tmp_path / "c.yaml"), "--prefix", prefix]) == 0
    assert torch.equal(torch.load(tmp_path / "b.pth")["features.0.0.weight"], state["features.0.0.weight"] + added)


@pytest.mark.parametrize("metadata", [{"network": {"depth": 18}}, {"network": "ResNet18"}, {"pixel_format": "rgb24"}])
def test_metadata_of_others(tmp_path, capsys, metadata):
    torch.save({"state_dict": torchvision.models.resnet18().state_dict(), "metadata": metadata}, tmp_path / "x.pth")
    assert main(["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]) == 0
    printed = capsys.readouterr().out
    assert "pixel_format: RGB" in printed and "pixel_mean: [123.675, 116.28, 103.53]" in printed


def test_the_input_is_not_overwritten(tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "x.pth")
    before = (tmp_path / "x.pth").read_bytes()
    words = [
        "--input",
        str(tmp_path / "x.pth"),
        "--format",
        "torchvision",
        "--output",
        str(tmp_path / ".." / tmp_path.name / "x.pth"),
    ]
    assert main(words) == 2 and (tmp_path / "x.pth").read_bytes() == before
    assert "is the input, which it would replace: name another file" in capsys.readouterr().err


def test_addresses_are_not_fetched(capsys):
    assert main(["--input", "torchvision://mobilenet_v2", "--output", "b.pkl"]) == 2
    assert "torchvision:/mobilenet_v2 is an address: download it, and name the file" in capsys.readouterr().err


def test_which_of_two_networks(tmp_path, capsys):
    state = with_statistics("mobilenet_v2").state_dict()
    torch.save({"left": state, "right": {name: value + 1 for name, value in state.items()}}, tmp_path / "two.pth")
    (tmp_path / "c.yaml").write_text(rgb_cfg("mobilenet_v2").dump())
    command = ["--input", str(tmp_path / "two.pth"), "--format", "torchvision", "--output", str(tmp_path / "b.pth")]
    command += ["--config-file", str(tmp_path / "c.yaml")]
    assert main(command) == 2
    assert "several mobilenet_v2, below left, right: choose one with --prefix" in capsys.readouterr().err
    assert main([*command, "--prefix", "middle"]) == 2
    assert "--prefix middle: no whole mobilenet_v2 lies there; there is one below: left, r" in capsys.readouterr().err
    assert main([*command, "--prefix", "right"]) == 0
    assert torch.equal(torch.load(tmp_path / "b.pth")["features.0.0.weight"], state["features.0.0.weight"] + 1)


def test_equal_networks_count_as_one(tmp_path):
    state = with_statistics("mobilenet_v2").state_dict()
    torch.save({"model": state, "ema": {name: value.clone() for name, value in state.items()}}, tmp_path / "two.pth")
    (tmp_path / "c.yaml").write_text(rgb_cfg("mobilenet_v2").dump())
    command = ["--input", str(tmp_path / "two.pth"), "--format", "torchvision", "--output", str(tmp_path / "b.pth")]
    assert main([*command, "--config-file", str(tmp_path / "c.yaml")]) == 0
    name = "features.0.0.weight"
    assert torch.equal(torch.load(tmp_path / "b.pth")[name], state[name])


@pytest.mark.parametrize("depth", [18, 50])
def test_timm(tmp_path, depth):
    timm = pytest.importorskip("timm")
    ours, path = exported_resnet(tmp_path, depth)
    net = timm.create_model(f"resnet{depth}", num_classes=0, checkpoint_path=str(path)).eval()
    assert_same(ours, lambda images: net.forward_intermediates(images, intermediates_only=True)[1:])


def test_timm_has_other_names_for_a_mobilenet(tmp_path):
    timm = pytest.importorskip("timm")
    ours, path = exported_network(tmp_path, "mobilenet_v2")
    net = timm.create_model("mobilenetv2_100", num_classes=0).eval()
    net.load_state_dict(rename_in_order(torch.load(path), net.state_dict()))
    assert_same(ours, lambda images: [net.forward_features(images)], ["res5"])


def test_a_resnet_with_other_strides_is_refused(tmp_path, capsys):
    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    save_backbone(tmp_path / "b.pkl", backbone_state(d2_resnet(50)), backbone_metadata(cfg, 1))
    assert (
        main(["--input", str(tmp_path / "b.pkl"), "--format", "torchvision", "--output", str(tmp_path / "b.pth")]) == 2
    )
    assert "it has the strides in 1x1 convolutions (MODEL.RESNETS.STRIDE_IN_1X1 True)" in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("depth", [18, 50])
def test_mmpretrain(tmp_path, depth):
    backbones = pytest.importorskip("mmpretrain.models.backbones")
    ours, path = exported_resnet(tmp_path, depth)
    net = backbones.ResNet(
        depth=depth, out_indices=(0, 1, 2, 3), init_cfg={"type": "Pretrained", "checkpoint": str(path)}
    )
    net.init_weights()
    net.eval()  # returns None in mmpretrain
    assert_same(ours, net)


def test_mmpretrain_has_other_names_for_a_mobilenet(tmp_path):
    backbones = pytest.importorskip("mmpretrain.models.backbones")
    ours, path = exported_network(tmp_path, "mobilenet_v2")
    net = backbones.MobileNetV2()
    net.eval()
    net.load_state_dict(rename_in_order(torch.load(path), net.state_dict()))
    assert_same(ours, net, ["res5"])


def test_renaming_in_order_refuses_other_networks():
    state = torchvision.models.mobilenet_v2().features.state_dict()
    renamed = rename_in_order({"a": torch.ones(2), "b.num_batches_tracked": torch.ones(())}, {"c": torch.ones(2)})
    assert list(renamed) == ["c"]
    with pytest.raises(ValueError, match="the file has 260 tensors, the network 2: they are not the same network"):
        rename_in_order(state, nn.Conv2d(3, 32, 3).state_dict())
    with pytest.raises(ValueError, match=r"a is \(2,\), but c is \(3,\): .* or have their layers in another order"):
        rename_in_order({"a": torch.ones(2)}, {"c": torch.ones(3)})
