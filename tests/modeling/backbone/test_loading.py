"""Weights into torchvision's networks and out of them, through the checked checkpointer."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from torch import nn

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    save_backbone,
    save_safetensors,
)
from densesiam_d2.checkpoint.loading import WeightsError
from tests.modeling.backbone.test_torchvision_backbone import STAGES, networks, tv_cfg, with_statistics


class Model(nn.Module):
    """What the checkpointer sees of any model: a backbone, and something else."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.head = nn.Linear(2, 2)


def rgb_cfg(*args, **options):
    cfg = tv_cfg(*args, **options)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    return cfg


def resnet_cfg(depth=18):
    cfg = rgb_cfg(name="build_resnet_backbone")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = depth, "BN", False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    return cfg


def load(cfg, path, **options):
    """Return a model that has loaded a file as train_net.py does."""
    model = Model(cfg).eval()
    CheckedCheckpointer(model, expect=expected_metadata(cfg), **options).resume_or_load(str(path), resume=False)
    return model


def saved(content, path):
    torch.save(content, path)
    return path


def assert_same(backbone, net):
    state = backbone.state_dict()
    values = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    compared = [name for name in values if name in state]
    assert len(compared) == sum(not name.endswith("num_batches_tracked") for name in state) > 60
    for name in compared:
        assert torch.equal(state[name], values[name]), name


@networks
def test_torchvisions_file_fills_every_tensor(tmp_path, network):
    net = with_statistics(network)
    path = saved(net.state_dict(), tmp_path / "net.pth")
    assert_same(load(rgb_cfg(network), path).backbone, net)
    pyramid = rgb_cfg(network, name="build_torchvision_fpn_backbone", norm="FrozenBN")
    assert_same(load(pyramid, path).backbone.bottom_up, net)


@networks
@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_exported_backbone_goes_into_a_pyramid(tmp_path, network, suffix):
    net, cfg = with_statistics(network), rgb_cfg(network)
    model = load(cfg, saved(net.state_dict(), tmp_path / "net.pth"))
    save = save_backbone if suffix == ".pkl" else save_safetensors
    save(tmp_path / f"backbone{suffix}", backbone_state(model), backbone_metadata(cfg, 1))
    pyramid = rgb_cfg(network, name="build_torchvision_fpn_backbone")
    pyramid.MODEL.RESNETS.DEPTH = 34  # says nothing here
    assert_same(load(pyramid, tmp_path / f"backbone{suffix}").backbone.bottom_up, net)


@networks
def test_whole_checkpoint_goes_into_a_pyramid(tmp_path, network):
    net, cfg = with_statistics(network), rgb_cfg(network)
    model = load(cfg, saved(net.state_dict(), tmp_path / "net.pth"))
    CheckedCheckpointer(model, str(tmp_path), expect=expected_metadata(cfg)).save("model_final")
    pyramid = rgb_cfg(network, name="build_torchvision_fpn_backbone")
    assert_same(load(pyramid, tmp_path / "model_final.pth").backbone.bottom_up, net)
    same = load(cfg, tmp_path / "model_final.pth", whole_model=True)
    assert torch.equal(same.head.weight, model.head.weight)


@pytest.mark.parametrize("network", ["mobilenet_v2", "convnext_tiny", "regnet_y_400mf"])
def test_exported_names_are_torchvisions(network):
    backbone = Model(rgb_cfg(network))
    names = {name for name in torchvision.models.get_model(network).state_dict() if name.split(".")[0] != "fc"}
    assert set(backbone_state(backbone)) == {name for name in names if not name.startswith("classifier.")}


@torch.no_grad()
def test_resnet18_goes_to_detectron2_and_back(tmp_path):
    net, x = with_statistics("resnet18"), torch.randn(1, 3, 64, 64)
    ours = load(rgb_cfg(), saved(net.state_dict(), tmp_path / "net.pth"))
    save_backbone(tmp_path / "ours.pkl", backbone_state(ours), backbone_metadata(rgb_cfg(), 1))
    theirs = load(resnet_cfg(), tmp_path / "ours.pkl")
    for stage in STAGES:
        torch.testing.assert_close(theirs.backbone(x)[stage], ours.backbone(x)[stage], rtol=0, atol=1e-5)
    save_backbone(tmp_path / "theirs.pkl", backbone_state(theirs), backbone_metadata(resnet_cfg(), 1))
    assert_same(load(rgb_cfg(), tmp_path / "theirs.pkl").backbone, net)


def test_mocos_query_encoder_is_taken(tmp_path):
    query, key = with_statistics("resnet18").state_dict(), torchvision.models.resnet18().state_dict()
    both = {f"module.encoder_q.{n}": v for n, v in query.items()} | {f"module.encoder_k.{n}": v for n, v in key.items()}
    path = saved({"state_dict": both, "arch": "resnet18"}, tmp_path / "moco.pth.tar")
    assert_same(load(rgb_cfg(), path).backbone, with_statistics("resnet18"))


def test_wrapped_network_is_found_below_any_prefix(tmp_path):
    net = with_statistics("mobilenet_v2")
    content = {"epoch": 3, "state_dict": {f"module.student.{n}": v for n, v in net.state_dict().items()}}
    assert_same(load(rgb_cfg("mobilenet_v2"), saved(content, tmp_path / "run.pth")).backbone, net)


@pytest.mark.parametrize(
    ("in_config", "in_file", "message"),
    [
        ("resnet18", "mobilenet_v2", "it holds nothing of torchvision's resnet18, the network that MODEL.TORCHVISION"),
        ("mobilenet_v2", "resnet18", "it holds a ResNet-18, but MODEL.TORCHVISION.NAME is mobilenet_v2"),
        ("resnet34", "resnet18", "it holds a ResNet-18, but MODEL.TORCHVISION.NAME is resnet34"),
        ("mobilenet_v3_small", "mobilenet_v3_large", "tensors of torchvision's mobilenet_v3_small, the network that"),
        ("mnasnet0_5", "mnasnet1_0", "check MODEL.TORCHVISION.NAME"),  # wider
    ],
)
def test_another_network_stops_the_run_in_one_line(tmp_path, in_config, in_file, message):
    path = saved(torchvision.models.get_model(in_file).state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        load(rgb_cfg(in_config), path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lost_tensor_stops_the_run(tmp_path):
    """A MobileNetV2 has 314 tensors with its classifier's 2 and the batch counters of its 52 batch norms."""
    state = torchvision.models.mobilenet_v2().state_dict()
    del state["features.5.conv.2.weight"]
    path = saved(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 of the 260 tensors .* such as features\.5\.conv\.2\.weight"):
        load(rgb_cfg("mobilenet_v2"), path)


def test_two_networks_stop_the_run(tmp_path):
    one, other = with_statistics("mobilenet_v2").state_dict(), torchvision.models.mobilenet_v2().state_dict()
    both = {f"student.{n}": v for n, v in one.items()} | {f"teacher.{n}": v for n, v in other.items()}
    with pytest.raises(WeightsError, match="several mobilenet_v2, below student, teacher"):
        load(rgb_cfg("mobilenet_v2"), saved(both, tmp_path / "net.pth"))


@pytest.mark.parametrize("network", ["mobilenet_v2", "resnet18"])
def test_pixels_of_torchvision_are_compared_with_the_config(tmp_path, network):
    path = saved(torchvision.models.get_model(network).state_dict(), tmp_path / "net.pth")
    cfg = rgb_cfg(network)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD = "BGR", [1.0, 1.0, 1.0]
    with pytest.raises(WeightsError, match=r"pixel_format is RGB in the file but INPUT\.FORMAT is BGR; pixel_std"):
        load(cfg, path)


@pytest.mark.parametrize(
    ("network", "mean", "std"),
    [
        ("resnet18", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("efficientnet_v2_l", [127.5] * 3, [127.5] * 3),  # its recipe normalises to [-1, 1]
        ("googlenet", [127.5] * 3, [127.5] * 3),  # it does so itself
    ],
)
def test_what_torchvisions_weights_expect(network, mean, std):
    with torch.device("meta"):
        facts = build_backbone(tv_cfg(network)).input_facts
    assert facts["pixel_format"] == "RGB"
    assert facts["pixel_mean"] == pytest.approx(mean)
    assert facts["pixel_std"] == pytest.approx(std)


def test_file_says_which_network_it_holds():
    facts = backbone_metadata(rgb_cfg("mobilenet_v2"), 7)
    assert (facts["network"], facts["pixel_format"], facts["iteration"]) == ("mobilenet_v2", "RGB", 7)
    assert not {"depth", "num_groups", "width_per_group"} & facts.keys()  # of MODEL.RESNETS, which built nothing


def test_strides_in_the_first_convolution_are_not_torchvisions(tmp_path):
    """detectron2's own ResNet-50 of MSRA has the same tensors, and computes something else."""
    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    save_backbone(tmp_path / "msra.pkl", backbone_state(Model(cfg)), backbone_metadata(cfg, 1))
    with pytest.raises(WeightsError, match="stride_in_1x1 is True in the file"):
        load(rgb_cfg("resnet50"), tmp_path / "msra.pkl")


def test_file_of_another_network_is_named_by_its_metadata(tmp_path):
    cfg = rgb_cfg("regnet_y_400mf")
    save_backbone(tmp_path / "backbone.pkl", backbone_state(Model(cfg)), backbone_metadata(cfg, 1))
    with pytest.raises(WeightsError, match=r"regnet_x_400mf.*MODEL\.TORCHVISION\.NAME"):
        load(rgb_cfg("regnet_x_400mf"), tmp_path / "backbone.pkl")


@pytest.mark.parametrize("name", ["resnet19", "resnet18"])
def test_weights_that_cannot_be_fetched_stop_the_run_in_one_line(tmp_path, monkeypatch, name):
    def unreachable(url, *_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match=rf"MODEL\.WEIGHTS torchvision://{name}: ") as error:
        load(rgb_cfg(), f"torchvision://{name}")
    assert "\n" not in str(error.value)


def test_a_deeper_network_of_torchvision_is_refused(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(ValueError, match=r"it holds a larger network than resnet18, which has no layer1\.2, layer2\.2"):
        load(rgb_cfg("resnet18"), path)
