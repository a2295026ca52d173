import contextlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone

from densesiam_d2.checkpoint import (
    TORCHVISION_METADATA,
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    from_torchvision,
    read_checkpoint,
    recognise,
    save_backbone,
    save_torchvision,
    to_torchvision,
)
from densesiam_d2.engine.hooks import ExportBackboneHook
from densesiam_d2.tools.export_backbone import main
from tests.checkpoint.networks import d2_resnet, prefixed, resnet_cfg, tv_resnet

ORDINARY = {"num_groups": 1, "width_per_group": 64}


def assert_same_features(ours, theirs):
    """Compare res2..res5 of a detectron2 ResNet with layer1..layer4 of a torchvision ResNet."""
    torch.set_num_threads(1)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = ours.eval()(images)
        x = theirs.eval().maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for stage in range(2, 6):
            x = getattr(theirs, f"layer{stage - 1}")(x)
            assert x.std() > 1e-3  # a dead network would be equal to anything dead
            error = (features[f"res{stage}"] - x).norm() / x.norm()
            assert error < 1e-5, f"res{stage}: {error}"


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_computes_the_same_from_our_export(tmp_path, depth):
    ours, theirs = d2_resnet(depth, seed=1), tv_resnet(depth, seed=2)
    save_torchvision(tmp_path / "backbone.pth", backbone_state(ours))
    keys = theirs.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("depth", [18, 50])
def test_detectron2_computes_the_same_from_torchvision(depth):
    ours, theirs = d2_resnet(depth, seed=1), tv_resnet(depth, seed=2)
    state = recognise(theirs.state_dict()).state
    keys = ours.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in keys.missing_keys) and not keys.unexpected_keys
    assert_same_features(ours, theirs)


def test_both_directions_are_inverse():
    state = backbone_state(d2_resnet(18))
    assert list(from_torchvision(to_torchvision(state))) == list(state)


def test_the_state_is_a_copy():
    model = d2_resnet(18)
    state = backbone_state(model)
    before = state["stem.conv1.weight"].copy()
    with torch.no_grad():
        model.stem.conv1.weight.zero_()
    assert np.array_equal(state["stem.conv1.weight"], before)


def test_backbone_file_content(tmp_path):
    cfg = resnet_cfg(18)
    cfg.MODEL.META_ARCHITECTURE = "DenseSiam"
    path = tmp_path / "new" / "backbone.pkl"
    state = backbone_state(d2_resnet(18))
    save_backbone(path, state, backbone_metadata(cfg, 41))
    content = pickle.loads(path.read_bytes())  # as detectron2 reads it
    assert content["matching_heuristics"] is True and content["__author__"] == "densesiam_d2"
    assert content["metadata"].pop("version")
    expected = {"method": "DenseSiam", "iteration": 41, "depth": 18, **ORDINARY, **TORCHVISION_METADATA}
    assert content["metadata"] == expected
    assert set(content["model"]) == {
        n for n in build_backbone(cfg).state_dict() if not n.endswith("num_batches_tracked")
    }
    with pytest.raises(ValueError, match=r"needs a name ending in \.pkl"):
        save_backbone(tmp_path / "backbone.pth", state, {})


def test_the_hook_writes_the_same_in_both_formats(tmp_path):
    model = torch.nn.Module()
    model.backbone = d2_resnet(18, seed=3).to(memory_format=torch.channels_last)
    hook = ExportBackboneHook(resnet_cfg(18), str(tmp_path))
    hook.trainer = SimpleNamespace(model=model, start_iter=0, iter=2, max_iter=3)
    hook.after_train()
    assert not list(tmp_path.iterdir())  # half a pretraining
    hook.trainer.iter = 3
    hook.after_train()
    pkl, safetensors = (read_checkpoint(tmp_path / f"backbone.{suffix}") for suffix in ("pkl", "safetensors"))
    assert pkl["metadata"] == safetensors["metadata"] and safetensors["metadata"]["iteration"] == 3
    assert pkl["model"].keys() == safetensors["model"].keys()
    assert all(np.array_equal(value, safetensors["model"][name]) for name, value in pkl["model"].items())
    hook.trainer.start_iter, hook.trainer.iter = 5, 6  # resumed after more iterations than it should have
    hook.after_train()
    assert read_checkpoint(tmp_path / "backbone.pkl")["metadata"]["iteration"] == 5


def test_tool_writes_and_reads_safetensors(tmp_path, capsys):
    theirs = tv_resnet(18)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    command = ["--input", str(tmp_path / "resnet18.pth"), "--format", "safetensors", "--output"]
    assert main([*command, str(tmp_path / "b.pkl")]) == 2
    assert "needs a name ending in .safetensors" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b.safetensors")]) == 0
    metadata = read_checkpoint(tmp_path / "b.safetensors")["metadata"]
    method = "torchvision names at the top"
    source = {"method": method, "iteration": None, "source": "resnet18.pth"}
    assert metadata == {**source, "depth": 18, **ORDINARY, **TORCHVISION_METADATA}
    back = ["--input", str(tmp_path / "b.safetensors"), "--format", "torchvision"]
    assert main([*back, "--output", str(tmp_path / "back.pth")]) == 0
    exported = torch.load(tmp_path / "back.pth", weights_only=True)
    assert torch.equal(exported["layer3.0.downsample.0.weight"], theirs.state_dict()["layer3.0.downsample.0.weight"])


def test_tool_reads_the_config_beside_the_checkpoint(tmp_path, capsys):
    cfg = resnet_cfg(18)
    checkpoint = tmp_path / "model_final.pth"
    torch.save({"model": prefixed("backbone.", d2_resnet(18).state_dict()), "iteration": 7}, checkpoint)
    arguments = ["--input", str(checkpoint), "--output", str(tmp_path / "backbone.pkl")]
    assert main(arguments) == 2
    assert "nothing says which images this backbone expects; give --config-file" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "recognised detectron2 names below model.backbone: ResNet-18, 100 tensors" in printed
        and "pixel_format: RGB" in printed
    )
    assert read_checkpoint(tmp_path / "backbone.pkl")["metadata"]["iteration"] == 8
    cfg.MODEL.RESNETS.DEPTH = 50
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert main(arguments) == 2
    assert "it holds a ResNet-18 with depth 18, but its config says depth 50" in capsys.readouterr().err


def test_tool_trusts_what_the_run_stored_more_than_the_config_beside_it(tmp_path):
    """A mistyped command in a finished run's folder replaces config.yaml; the checkpoint still knows its images."""
    model = torch.nn.Module()
    model.backbone = d2_resnet(18)
    facts = {**TORCHVISION_METADATA, "depth": 18}
    CheckedCheckpointer(model, str(tmp_path), expect=facts).save("model_final", iteration=7)
    cfg = resnet_cfg(18)
    cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.DEPTH = "BGR", 50
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert main(["--input", str(tmp_path / "model_final.pth"), "--output", str(tmp_path / "backbone.pkl")]) == 0
    metadata = read_checkpoint(tmp_path / "backbone.pkl")["metadata"]
    assert {key: metadata[key] for key in facts} == facts and metadata["iteration"] == 8
    # A config that is named wins over what is stored.
    cfg.MODEL.RESNETS.DEPTH = 18
    (tmp_path / "named.yaml").write_text(cfg.dump())
    command = ["--input", str(tmp_path / "model_final.pth"), "--output", str(tmp_path / "backbone.pkl")]
    assert main([*command, "--config-file", str(tmp_path / "named.yaml")]) == 0
    assert read_checkpoint(tmp_path / "backbone.pkl")["metadata"]["pixel_format"] == "BGR"


def test_tool_takes_the_pixels_of_a_config_for_somebody_elses_weights(tmp_path, capsys):
    """SimCLR of Google, converted to torchvision's names: its values are 0 to 1, which the file cannot say."""
    torch.save({"state_dict": tv_resnet(18).state_dict()}, tmp_path / "simclr.pth")
    (tmp_path / "inputs.yaml").write_text(resnet_cfg(18).dump())
    command = ["--input", str(tmp_path / "simclr.pth"), "--output", str(tmp_path / "b.pkl")]
    pixels = ["MODEL.PIXEL_MEAN", "[0.0,0.0,0.0]", "MODEL.PIXEL_STD", "[255.0,255.0,255.0]"]
    assert main([*command, *pixels]) == 2
    assert "keys and values change a config, so give --config-file as well" in capsys.readouterr().err
    assert main([*command, "--config-file", str(tmp_path / "inputs.yaml"), *pixels]) == 0
    capsys.readouterr()
    assert main([*command, "--config-file", str(tmp_path / "inputs.yaml"), "MODEL.PIXEL_STD", "[0.0,0.0,0.0]"]) == 2
    assert "MODEL.PIXEL_STD is [0.0, 0.0, 0.0]; it must be three numbers > 0" in capsys.readouterr().err
    metadata = read_checkpoint(tmp_path / "b.pkl")["metadata"]
    assert metadata["pixel_mean"] == [0.0] * 3 and metadata["pixel_std"] == [255.0] * 3
    assert metadata["pixel_format"] == "RGB" and metadata["source"] == "simclr.pth"
    assert metadata["method"] == "torchvision names below state_dict"
    again = ["--input", str(tmp_path / "b.pkl"), "--output", str(tmp_path / "c.pkl")]
    assert main(again) == 0
    assert read_checkpoint(tmp_path / "c.pkl")["metadata"] == metadata  # the first file stays the source


def test_the_tool(tmp_path):
    theirs = tv_resnet(18)
    torch.save({"state_dict": prefixed("module.encoder_q.", theirs.state_dict()) | {"module.queue": torch.ones(1)}},
               tmp_path / "moco.pth.tar")  # fmt: skip
    assert main(["--input", str(tmp_path / "moco.pth.tar"), "--output", str(tmp_path / "backbone.pkl")]) == 0
    content = read_checkpoint(tmp_path / "backbone.pkl")
    assert content["metadata"]["method"] == "torchvision names below state_dict.encoder_q"
    assert content["metadata"]["stride_in_1x1"] is False and content["metadata"]["depth"] == 18
    assert main(["--input", str(tmp_path / "backbone.pkl"), "--output", str(tmp_path / "b.pth"),
                 "--format", "torchvision"]) == 0  # fmt: skip
    exported = torch.load(tmp_path / "b.pth", weights_only=True)
    assert torch.equal(exported["layer4.1.bn2.weight"], theirs.state_dict()["layer4.1.bn2.weight"])


def test_a_backbone_of_another_kind_keeps_its_names(caplog):
    """A model whose backbone is a lone convolution, and a ResNet cut off after res3: a week of training is not lost."""
    model = torch.nn.Module()
    model.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    model.dense = torch.nn.Conv2d(4, 4, 1)
    state = backbone_state(model)
    assert set(state) == {"0.weight", "0.bias"}
    assert np.array_equal(state["0.weight"], model.backbone[0].weight.detach().numpy())
    assert "keeps its own names" in caplog.text

    cfg = resnet_cfg(18)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    names = set(backbone_state(build_backbone(cfg)))
    assert "res3.1.conv2.weight" in names and not any(name.startswith("res4") for name in names)


def test_tool_says_what_a_wide_network_needs(tmp_path, capsys):
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in torchvision.models.resnext50_32x4d(weights=None).state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "x.pth")
    command = ["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "note: a ResNeXt-50 32x4d is no ResNet-50: it needs MODEL.RESNETS.NUM_GROUPS 32, "
        "MODEL.RESNETS.WIDTH_PER_GROUP 4"
    )
    metadata = read_checkpoint(tmp_path / "b.pkl")["metadata"]
    assert (metadata["depth"], metadata["num_groups"], metadata["width_per_group"]) == (50, 32, 4)
    (tmp_path / "config.yaml").write_text(resnet_cfg(50).dump())
    assert main([*command, "--config-file", str(tmp_path / "config.yaml")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "x.pth: it holds a ResNeXt-50 32x4d with num_groups 32, but its config says num_groups 1" in error


def test_tool_says_what_a_network_without_statistics_needs(tmp_path, capsys):
    network = tv_resnet(18).state_dict()
    torch.save({n: value for n, value in network.items() if ".running_" not in n}, tmp_path / "x.pth")
    assert main(["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("needs MODEL.RESNETS.NORM GN or FrozenBN")
    for norm in ("GN", "FrozenBN", "BN"):
        model = torch.nn.ModuleDict({"backbone": build_backbone(resnet_cfg(18, norm=norm))})
        works = contextlib.nullcontext() if norm != "BN" else pytest.raises(ValueError, match="running_mean")
        with works:
            CheckedCheckpointer(model).resume_or_load(str(tmp_path / "b.pkl"), resume=False)


def test_tool_asks_which_of_several_networks(tmp_path, capsys):
    first, second = tv_resnet(18, seed=1).state_dict(), tv_resnet(18, seed=2).state_dict()
    torch.save({"left": first, "right": second}, tmp_path / "x.pth")
    command = ["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "b.pkl")]
    assert main(command) == 2
    assert "x.pth: it holds 2 different ResNets, below left, below right; choose one with --pre" in (
        capsys.readouterr().err
    )
    assert main([*command, "--prefix", "right"]) == 0
    assert np.array_equal(read_checkpoint(tmp_path / "b.pkl")["model"]["stem.conv1.weight"], second["conv1.weight"])


def test_a_model_with_a_teacher_exports_its_backbone():
    model = torch.nn.Module()
    model.teacher, model.backbone = d2_resnet(18, seed=1), d2_resnet(18, seed=2)
    assert np.array_equal(backbone_state(model)["stem.conv1.weight"], model.backbone.stem.conv1.weight.detach())
