import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone

from densesiam_d2.checkpoint import recognise
from tests.checkpoint.networks import randomise, resnet_cfg, tv_resnet
from tests.checkpoint.test_export import assert_same_features

RESNET18 = tv_resnet(18, seed=1).state_dict()


def test_a_network_for_small_images_is_refused():
    state = {**RESNET18, "conv1.weight": torch.zeros(64, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"stem\.conv1\.weight is \(64, 3, 3, 3\): detectron2's ResNets begin with"):
        recognise(state)


@pytest.mark.parametrize("shape", [(0,), (18432,), (), (0, 64, 3, 3)])
def test_one_shard_of_a_network_is_refused(shape):
    state = {**RESNET18, "layer1.0.conv2.weight": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"res2\.0\.conv2\.weight is \(.*\), but .* one shard of a model"):
        recognise(state)


def test_a_network_for_volumes_is_refused():
    state = {**RESNET18, "conv1.weight": torch.zeros(64, 3, 7, 7, 7)}
    with pytest.raises(ValueError, match=r"stem\.conv1\.weight is .*: a network for volumes or videos does not fit"):
        recognise(state)


# By hand from torchvision/models/resnet.py: width_per_group of wide ResNets is 64 * 2, of ResNeXt the d of its name.
KINDS = {
    "resnet34": ("ResNet-34", (1, 64), ""),
    "resnet50": ("ResNet-50", (1, 64), ""),
    "wide_resnet50_2": (
        "wide ResNet-50-2",
        (1, 128),
        "MODEL.RESNETS.NUM_GROUPS 1, MODEL.RESNETS.WIDTH_PER_GROUP 128",
    ),
    "resnext50_32x4d": (
        "ResNeXt-50 32x4d",
        (32, 4),
        "MODEL.RESNETS.NUM_GROUPS 32, MODEL.RESNETS.WIDTH_PER_GROUP 4",
    ),
    "resnext101_32x8d": (
        "ResNeXt-101 32x8d",
        (32, 8),
        "MODEL.RESNETS.NUM_GROUPS 32, MODEL.RESNETS.WIDTH_PER_GROUP 8",
    ),
}


@pytest.mark.parametrize("arch", KINDS)
def test_widths_and_groups_are_told_apart(arch):
    found = recognise(_without_memory(getattr(torchvision.models, arch)))
    name, widths, settings = KINDS[arch]
    assert (found.kind.name, found.kind.settings) == (name, settings)
    assert (found.kind.num_groups, found.kind.width_per_group) == widths


def _without_memory(build):
    """Return a state dict of zeros, each of which takes four bytes."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build(weights=None).state_dict().items()}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_twice_the_channels_everywhere():
    """As SwAV's and BYOL's RN50w2: 128 channels in the stem, 512 behind res2."""
    with torch.device("meta"):
        ordinary = torchvision.models.resnet50(weights=None).state_dict()
    shapes = {name: list(value.shape) for name, value in ordinary.items()}
    doubled = {
        name: [n if n == 3 and name == "conv1.weight" else 2 * n for n in shape[:2]] + shape[2:]
        for name, shape in shapes.items()
    }
    kind = recognise({name: torch.zeros(()).expand(shape) for name, shape in doubled.items()}).kind
    assert kind.settings == (
        "MODEL.RESNETS.NUM_GROUPS 1, MODEL.RESNETS.WIDTH_PER_GROUP 128, MODEL.RESNETS.STEM_OUT_CHANNELS 128, "
        "MODEL.RESNETS.RES2_OUT_CHANNELS 512"
    )


def test_a_shape_that_no_resnet_has():
    state = {**RESNET18, "layer2.0.bn1.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"res3\.0\.conv1\.norm\.bias is \(7,\), but a ResNet-18 has \(128,\)"):
        recognise(state)


@pytest.mark.parametrize(("groups", "width"), [(1, 128), (32, 4)])
def test_detectron2_computes_the_same_from_wide_networks(groups, width):
    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = groups, width
    ours = randomise(build_backbone(cfg), seed=1)
    build = torchvision.models.wide_resnet50_2 if groups == 1 else torchvision.models.resnext50_32x4d
    theirs = randomise(build(weights=None), seed=2)
    state = recognise(theirs.state_dict()).state
    keys = ours.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in keys.missing_keys) and not keys.unexpected_keys
    assert_same_features(ours, theirs)
