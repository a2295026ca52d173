import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone

from densesiam_d2.checkpoint import check_complete, depth_of, from_torchvision, to_torchvision
from tests.checkpoint.networks import resnet_cfg

PAIRS = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer2.3.bn3.bias": "res3.3.conv3.norm.bias",
    "layer3.0.downsample.0.weight": "res4.0.shortcut.weight",
    "layer4.0.downsample.1.running_mean": "res5.0.shortcut.norm.running_mean",
}


def test_names_by_hand_in_both_directions():
    by_d2_name = {d2: d2 for d2 in PAIRS.values()}
    assert from_torchvision({tv: d2 for tv, d2 in PAIRS.items()}) == by_d2_name
    assert to_torchvision(by_d2_name) == PAIRS
    assert from_torchvision({"fc.weight": 1, "fc.bias": 2}) == {}


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_names_of_the_real_networks(depth):
    with torch.device("meta"):  # names only, no memory
        ours = build_backbone(resnet_cfg(depth))
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    names = {n for n in ours.state_dict() if not n.endswith("num_batches_tracked")}
    tv_names = {n for n in theirs.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(from_torchvision(dict.fromkeys(tv_names))) == names
    assert check_complete(names) == depth
    assert depth_of(names - {"res4.0.conv1.weight", "res2.1.conv2.weight"}) == depth


def test_group_norm_has_no_statistics_to_miss():
    names = build_backbone(resnet_cfg(18, norm="GN")).state_dict()
    assert check_complete(names) == 18


def test_missing_and_left_over_tensors_are_named():
    names = {n for n in build_backbone(resnet_cfg(18)).state_dict() if not n.endswith("num_batches_tracked")}
    with pytest.raises(ValueError, match=r"ResNet-18; missing: res5\.1\.conv2\.norm\.running_var$"):
        check_complete(names - {"res5.1.conv2.norm.running_var"})
    with pytest.raises(ValueError, match=r"left over: res5\.1\.se\.weight$"):
        check_complete(names | {"res5.1.se.weight"})
    with pytest.raises(ValueError, match=r"missing: stem\.conv1\.weight"):
        check_complete(names - {"stem.conv1.weight"})
    with pytest.raises(ValueError, match="no ResNet tensors"):
        depth_of(["fc.weight"])
    with pytest.raises(ValueError, match=r"1 tensors are no part of a ResNet: layer1\.0\.se\.weight"):
        from_torchvision({"layer1.0.se.weight": 0})
