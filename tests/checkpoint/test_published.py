"""Published files from end to end: exported by the tool, loaded by detectron2, features equal to torchvision's."""

import functools
import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn

from densesiam_d2.checkpoint import (
    TORCHVISION_METADATA,
    CheckedCheckpointer,
    expected_metadata,
    read_checkpoint,
    recognise,
)
from densesiam_d2.tools.export_backbone import main
from tests.checkpoint.networks import d2_resnet, fpn_cfg, fpn_detector, prefixed, resnet_cfg, tv_resnet
from tests.checkpoint.published import BOTTLENECKS, CHECKPOINTS, CONVERTED, ONLINE, OTHER, fpn, hugging_face, without_fc

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# The tensors of Google's SimCLR take x / 255, which is (x - mean) / std of these.
FROM_0_TO_1 = TORCHVISION_METADATA | {"pixel_mean": [0.0, 0.0, 0.0], "pixel_std": [255.0, 255.0, 255.0]}
ALL = {f"{name}, R18": (18, *entry) for name, entry in (CHECKPOINTS | CONVERTED).items()}
ALL |= {f"{name}, R50": (50, *entry) for name, entry in BOTTLENECKS.items()}


@functools.lru_cache
def expected(depth, seed):
    """Features of layer1 to layer4 of the torchvision network whose tensors are in the files."""
    network, features = tv_resnet(depth, seed), {}
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(IMAGE))))
        for stage in range(1, 5):
            x = features[f"res{stage + 1}"] = getattr(network, f"layer{stage}")(x)
            assert x.std() > 1e-3  # a dead network would be equal to anything dead
    return features


@functools.lru_cache
def unfilled(depth):
    return d2_resnet(depth)


def empty_network(depth):
    """A detectron2 ResNet full of NaN: what a file does not fill spoils all features."""
    network = unfilled(depth)
    for value in network.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 0)
    return network


def assert_online(network, depth):
    with torch.no_grad():
        features = network.eval()(IMAGE)
    for name, feature in features.items():
        online, other = expected(depth, 1)[name], expected(depth, 2)[name]
        assert (feature - online).norm() < 1e-5 * online.norm(), name
        assert (feature - other).norm() > 0.1 * other.norm(), name


@pytest.mark.parametrize("name", ALL)
def test_a_published_file_gives_the_features_of_its_network(tmp_path, name):
    depth, layout, checkpoint = ALL[name]
    source, output = tmp_path / "published.pth", tmp_path / "backbone.pkl"
    torch.save(checkpoint, source)
    assert main(["--input", str(source), "--output", str(output)]) == 0
    network = empty_network(depth)
    DetectionCheckpointer(network).load(str(output))
    assert_online(network, depth)
    metadata = read_checkpoint(output)["metadata"]
    assert metadata["method"] == layout and metadata["depth"] == depth
    pixels = FROM_0_TO_1 if name.startswith("SimCLRv2") else TORCHVISION_METADATA
    assert {key: metadata[key] for key in pixels} == pixels

    model = nn.ModuleDict({"backbone": empty_network(depth)})
    expect = expected_metadata(resnet_cfg(depth)) | pixels
    CheckedCheckpointer(model, expect=expect).resume_or_load(str(source), resume=False)
    assert_online(model.backbone, depth)


def test_converters_names_are_read_from_a_plain_pickle(tmp_path):
    content = CONVERTED["MoCo and others, converted"][1]
    (tmp_path / "moco.pkl").write_bytes(pickle.dumps(content))
    assert main(["--input", str(tmp_path / "moco.pkl"), "--output", str(tmp_path / "b.pkl")]) == 0
    state = read_checkpoint(tmp_path / "b.pkl")["model"]
    assert len(state) == 100 and not any("fc" in name for name in state)
    assert np.array_equal(state["stem.conv1.norm.bias"], ONLINE["bn1.bias"].numpy())


@pytest.mark.parametrize("name", ["ReSim", "ReSim, backbone"])
def test_the_fpn_of_resim_fills_a_detector(tmp_path, name):
    """Its lateral layers 5, 4 and 3 and output layers 4 and 3; the detector keeps its own others."""
    source, output = tmp_path / "resim.pth.tar", tmp_path / "backbone.pkl"
    torch.save((CHECKPOINTS | CONVERTED)[name][1], source)
    assert main(["--input", str(source), "--output", str(output)]) == 0
    safe = tmp_path / "backbone.safetensors"
    assert main(["--input", str(output), "--output", str(safe), "--format", "safetensors"]) == 0
    trained = {f"backbone.{n}": value for n, value in fpn(1).items()}
    for path in (source, output, safe):
        detector = fpn_detector(18, seed=3)
        before = {n: value.clone() for n, value in detector.state_dict().items()}
        expect = expected_metadata(fpn_cfg(18))
        CheckedCheckpointer(detector, expect=expect).resume_or_load(str(path), resume=False)
        layers = {n: value for n, value in detector.state_dict().items() if n.startswith("backbone.fpn_")}
        assert len(layers) == 16 and len(trained) == 10
        assert all(torch.equal(value, trained.get(n, before[n])) for n, value in layers.items())
    torchvision = ["--input", str(source), "--output", str(tmp_path / "b.pth"), "--format", "torchvision"]
    assert main(torchvision) == 0
    assert not any("fpn" in n for n in torch.load(tmp_path / "b.pth", weights_only=True))


def test_the_fpn_of_resim_fills_one_with_norms(tmp_path):
    """ReSim's own config has FPN.NORM SyncBN: its convolutions have no bias, and the norms start afresh."""
    cfg = fpn_cfg(18)
    cfg.MODEL.FPN.NORM = "BN"
    detector = build_model(cfg)
    torch.save(CHECKPOINTS["ReSim"][1], tmp_path / "resim.pth.tar")
    CheckedCheckpointer(detector).resume_or_load(str(tmp_path / "resim.pth.tar"), resume=False)
    for name in ("fpn_lateral5", "fpn_lateral4", "fpn_lateral3", "fpn_output4", "fpn_output3"):
        layer = getattr(detector.backbone, name)
        assert torch.equal(layer.weight, fpn(1)[f"{name}.weight"]) and layer.bias is None
        assert torch.equal(layer.norm.weight, torch.ones(8))


def test_an_fpn_with_batch_norm_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="densesiam_d2")
    norms = {"fpn_lateral5.0.weight": torch.ones(8), "fpn_lateral5.1.weight": torch.ones(8)}
    found = recognise({"state_dict": prefixed("module.encoder_q.", {**ONLINE, **norms})})
    assert not found.fpn and "left out 4 other tensors" in caplog.text  # these two, fc.weight and fc.bias


def test_a_detector_exports_no_fpn():
    assert recognise({"model": fpn_detector(18).state_dict()}).fpn == {}


def test_a_file_of_torch_save_may_be_called_pkl(tmp_path):
    """As DetCo's is; detectron2 alone would take it for a pickle."""
    torch.save({"state_dict": without_fc(ONLINE)}, tmp_path / "detco_200ep_AA.pkl")
    assert main(["--input", str(tmp_path / "detco_200ep_AA.pkl"), "--output", str(tmp_path / "b.pkl")]) == 0
    network = empty_network(18)
    DetectionCheckpointer(network).load(str(tmp_path / "b.pkl"))
    assert_online(network, 18)


@pytest.mark.parametrize("rename", [dict, hugging_face])  # timm's names are torchvision's
def test_safetensors_of_a_hub(tmp_path, rename):
    source, output = tmp_path / "model.safetensors", tmp_path / "b.pkl"
    save_file(rename(ONLINE), source, {"format": "pt"})
    assert main(["--input", str(source), "--output", str(output)]) == 0
    model = nn.ModuleDict({"backbone": empty_network(18)})
    for path in (output, source):
        empty_network(18)
        CheckedCheckpointer(model).resume_or_load(str(path), resume=False)
        assert_online(model.backbone, 18)


@pytest.mark.parametrize(
    "first, second",
    [("model", "model_ema"), ("state_dict", "state_dict_ema")],  # torchvision's references/classification, timm
)
def test_an_average_beside_the_network_is_asked_about(tmp_path, capsys, first, second):
    torch.save({first: OTHER, second: {**prefixed("module.", ONLINE), "n_averaged": torch.ones(1)}}, tmp_path / "x.pth")
    command = ["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]
    assert main(command) == 2
    assert f"2 different ResNets, below {first}, below {second}; choose one with --prefix" in capsys.readouterr().err
    assert main([*command, "--prefix", second]) == 0
    network = empty_network(18)
    DetectionCheckpointer(network).load(str(tmp_path / "b.pkl"))
    assert_online(network, 18)
