"""MODEL.WEIGHTS of other people: what is beside the weights, which network, and whether it is the one of the config."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from densesiam_d2.checkpoint import backbone_state, save_backbone
from densesiam_d2.checkpoint.loading import WeightsError
from tests.checkpoint.networks import fpn_cfg, fpn_detector, prefixed, tv_resnet
from tests.checkpoint.test_loading import EXPORTED, checkpointer


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, logger="densesiam_d2")
    return caplog


def test_objects_beside_the_weights_are_left_out(tmp_path, logged):
    content = {"state_dict": prefixed("backbone.", tv_resnet(18, seed=7).state_dict()), "args": Path("/data")}
    torch.save(content, tmp_path / "last.ckpt")
    (tmp_path / "last.pkl").write_bytes(pickle.dumps({**content, "metadata": Path("x")}))
    for name in ("last.ckpt", "last.pkl"):
        model = fpn_detector(18, seed=1)
        checkpointer(model, fpn_cfg(18)).resume_or_load(str(tmp_path / name), resume=False)
        weight = model.backbone.bottom_up.res2[0].conv1.weight
        assert torch.equal(weight, content["state_dict"]["backbone.layer1.0.conv1.weight"])
    assert "left out objects that are no tensors: pathlib" in logged.text


def test_a_pickle_of_plain_torchvision_weights(tmp_path, logged):
    state = tv_resnet(18, seed=7).state_dict()
    (tmp_path / "flat.pkl").write_bytes(pickle.dumps(state))
    model = fpn_detector(18, seed=1)
    checkpointer(model, fpn_cfg(18)).resume_or_load(str(tmp_path / "flat.pkl"), resume=False)
    assert torch.equal(model.backbone.bottom_up.res4[1].conv2.weight, state["layer3.1.conv2.weight"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": prefixed("module._orig_mod.", state)},
        lambda state: {"state_dict": state, "model": "Mask R-CNN"},
        lambda state: {"state_dict": prefixed("model.", state)},
        lambda state: prefixed("module.net.", state),
    ],
    ids=["compiled", "state_dict", "Lightning", "at the top"],
)
def test_a_wrapped_detector_is_loaded_as_it_is(tmp_path, logged, wrap):
    source, model = fpn_detector(18, seed=1), fpn_detector(18, seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "model_final.pth")
    checkpointer(model, whole_model=True).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_choice_between_networks_is_not_made_silently(tmp_path):
    first, second = tv_resnet(18, seed=1).state_dict(), tv_resnet(18, seed=2).state_dict()
    torch.save({"left": first, "right": second}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match=r"two\.pth: it holds 2 different ResNets, .* --prefix of python -m dense"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "two.pth"), resume=False)


def test_two_detectors_whose_names_differ_by_a_wrapper_are_asked_about(tmp_path):
    first, second = (fpn_detector(18, seed=seed).state_dict() for seed in (1, 2))
    torch.save({**prefixed("module.", first), **second}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match="it holds 2 different ResNets, below module"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "two.pth"), resume=False)


@pytest.mark.parametrize("facts", [{}, {"matching_heuristics": True}])
def test_quantized_weights_under_the_names_of_the_model_are_refused(tmp_path, facts):
    state = {name: (10 * value).to(torch.int8) for name, value in fpn_detector(18).state_dict().items()}
    torch.save({"model": state, **facts}, tmp_path / "int8.pth")
    with pytest.raises(WeightsError, match=r"int8\.pth: \S+weight is torch\.int8, so the network is quantized"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "int8.pth"), resume=False)


@pytest.mark.parametrize("kind", ["detector", "backbone.pkl", "torchvision"])
def test_weights_that_diverged_are_refused(tmp_path, kind):
    path = tmp_path / "x.pkl"
    if kind == "detector":
        state = fpn_detector(18).state_dict()
        name = "roi_heads.box_head.fc1.bias"
    else:
        state = tv_resnet(18).state_dict()
        name = "layer2.0.bn1.bias"
    state = {key: value.clone() for key, value in state.items()}
    state[name][3] = float("nan")
    if kind == "backbone.pkl":
        name, array = "res3.0.conv1.norm.bias", backbone_state(EXPORTED)
        array[name][3] = np.inf
        save_backbone(path, array, {})
    else:
        path = tmp_path / "x.pth"
        torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match=rf"x\.p\w+(: \S*{name} holds| fills \S*{name} with) NaN or infinite values"):
        checkpointer(fpn_detector(18)).resume_or_load(str(path), resume=False)


def test_what_is_not_taken_may_have_diverged(tmp_path):
    state = {**tv_resnet(18).state_dict(), "fc.weight": torch.full((9, 512), torch.nan)}
    torch.save(state, tmp_path / "x.pth")
    model = fpn_detector(18)
    checkpointer(model).resume_or_load(str(tmp_path / "x.pth"), resume=False)
    assert torch.equal(model.backbone.bottom_up.res2[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_a_pickle_with_a_name_like_those_of_caffe2(tmp_path):
    content = {"state_dict": backbone_state(EXPORTED), "lambda_w": 0.5}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    model = fpn_detector(18)
    checkpointer(model).resume_or_load(str(tmp_path / "x.pkl"), resume=False)
    assert torch.equal(model.backbone.bottom_up.res5[1].conv2.weight, EXPORTED.res5[1].conv2.weight)


def test_a_wide_network_does_not_pass_for_an_ordinary_one(tmp_path):
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in torchvision.models.wide_resnet50_2(weights=None).state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "wide.pth")
    message = r"width_per_group is 128 in the file but MODEL\.RESNETS\.WIDTH_PER_GROUP is 64"
    with pytest.raises(WeightsError, match=message):
        checkpointer(fpn_detector(50), fpn_cfg(50)).resume_or_load(str(tmp_path / "wide.pth"), resume=False)
    # Nor without a config to compare with: its shapes are others.
    with pytest.raises(WeightsError, match=r"norm\.bias is \(128,\) in the file but \(64,\) in the model"):
        checkpointer(fpn_detector(50)).resume_or_load(str(tmp_path / "wide.pth"), resume=False)
