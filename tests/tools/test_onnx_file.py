"""A backbone as ONNX computes what torch computes, for other sizes and numbers of images than it was written with."""

import importlib.util
import json

import pytest
import torch

from densesiam_d2.checkpoint import backbone_metadata, backbone_state, save_backbone
from densesiam_d2.tools.export_backbone import main
from tests.checkpoint.networks import d2_resnet, resnet_cfg
from tests.checkpoint.test_other_libraries import Model
from tests.modeling.backbone.test_loading import rgb_cfg
from tests.modeling.backbone.test_torchvision_backbone import STAGES

MEAN, STD = [103.0, 116.0, 124.0], [57.0, 58.0, 60.0]


def resnet(folder):
    """Write a ResNet-18 that expects BGR images, and return it with the command that exports it."""
    cfg, ours = resnet_cfg(18), d2_resnet(18)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "BGR", MEAN, STD
    save_backbone(folder / "b.pkl", backbone_state(ours), backbone_metadata(cfg, 7))
    return ours, ["--input", str(folder / "b.pkl"), "--format", "onnx", "--output", str(folder / "b.onnx")]


@torch.no_grad()
def assert_same(path, ours, mean, std):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    for shape in [(3, 3, 65, 97), (1, 3, 128, 64)]:
        images = 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        normalised = torch.stack([(images[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
        expected, outputs = ours(normalised), session.run(STAGES, {"images": images.numpy()})
        for name, value in zip(STAGES, outputs, strict=True):
            assert expected[name].std() > 1e-3
            torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=1e-4, atol=1e-4)
    return session


def test_resnet(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    ours, command = resnet(tmp_path)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime differs from torch by at most" in printed
    session = assert_same(tmp_path / "b.onnx", ours, MEAN, STD)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["pixel_mean"]) == MEAN and json.loads(metadata["iteration"]) == 7
    assert metadata["input"] == "float32 (batch, 3, height, width), BGR, 0 to 255; mean and std are in the file"


def test_another_network(tmp_path):
    pytest.importorskip("onnxscript")
    model, cfg = Model("vgg11"), rgb_cfg("vgg11")  # has the fewest layers; the exporter is slow
    save_backbone(tmp_path / "b.pkl", backbone_state(model), backbone_metadata(cfg, 1))
    assert main(["--input", str(tmp_path / "b.pkl"), "--format", "onnx", "--output", str(tmp_path / "b.onnx")]) == 0
    assert_same(tmp_path / "b.onnx", model.backbone, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


def test_what_cannot_be_written(tmp_path, capsys, monkeypatch):
    _, command = resnet(tmp_path)
    assert main([*command[:-1], str(tmp_path / "b.pth")]) == 2
    assert "b.pth: this format needs a name ending in .onnx" in capsys.readouterr().err
    assert main([word for word in command if word not in ("--format", "onnx")]) == 2
    assert "b.onnx: --format onnx writes such files, not --format detectron2" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    needs = "--format onnx needs onnx and onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
    assert error == f"export_backbone: {needs}"
    assert not (tmp_path / "b.onnx").exists()
