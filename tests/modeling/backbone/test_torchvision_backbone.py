"""Torchvision's CNNs as backbones, against torchvision's own networks and detectron2's ResNet."""

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

from densesiam_d2.checkpoint import from_torchvision
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.modeling.backbone import TorchvisionBackbone, torchvision_cnns

STAGES = ["res2", "res3", "res4", "res5"]

# Channels of the stages, from the tables of the papers: MobileNetV2 table 2, ConvNeXt section 3 (ConvNeXt-T), ResNet
# table 1; RegNetY-400MF from its model zoo (facebookresearch/pycls).
CHANNELS = {
    "mobilenet_v2": [24, 32, 96, 1280],
    "convnext_tiny": [96, 192, 384, 768],
    "regnet_y_400mf": [48, 104, 208, 440],
    "resnet18": [64, 128, 256, 512],
}
# Where each stage ends, read from torchvision's own constructors.
ENDS = {
    "mobilenet_v2": ["features.3", "features.6", "features.13", "features.18"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "regnet_y_400mf": [f"trunk_output.block{i}" for i in (1, 2, 3, 4)],
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
}
networks = pytest.mark.parametrize("network", sorted(CHANNELS))


def tv_cfg(network="resnet18", *, name="build_torchvision_backbone", norm="BN", freeze_at=0, features=STAGES):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.TORCHVISION.NAME = network
    cfg.MODEL.TORCHVISION.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = features
    cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


def with_statistics(network):
    """Return a network of torchvision in which every tensor, batch statistics too, is drawn anew."""
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": True} if network == "googlenet" else {}
    net = torchvision.models.get_model(network, weights=None, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return net


def backbone_like(net, network, **options):
    backbone = build_backbone(tv_cfg(network, **options)).eval()
    left = backbone.load_state_dict(net.state_dict(), strict=False)
    assert not left.missing_keys
    unexpected = [name for name in left.unexpected_keys if not name.endswith("num_batches_tracked")]
    assert all(name.startswith(("classifier.", "fc.")) for name in unexpected)
    return backbone


@networks
@torch.no_grad()
def test_stages_are_torchvisions_own_maps(network):
    net = with_statistics(network)
    seen = {}
    for stage, end in zip(STAGES, ENDS[network], strict=True):
        net.get_submodule(end).register_forward_hook(
            lambda _, __, output, stage=stage: seen.__setitem__(stage, output.clone())
        )
    x = torch.randn(2, 3, 96, 64)
    net(x)
    backbone = backbone_like(net, network)
    features = backbone(x)
    assert list(features) == STAGES
    shapes = backbone.output_shape()
    for stage, channels, stride in zip(STAGES, CHANNELS[network], (4, 8, 16, 32), strict=True):
        assert (shapes[stage].channels, shapes[stage].stride) == (channels, stride)
        assert features[stage].shape == (2, channels, 96 // stride, 64 // stride)
        torch.testing.assert_close(features[stage], seen[stage], rtol=0, atol=1e-6)


@torch.no_grad()
def test_resnet18_is_detectron2s():
    net = with_statistics("resnet18")
    cfg = tv_cfg(name="build_resnet_backbone")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    stock = build_backbone(cfg).eval()
    state = {name: torch.as_tensor(value) for name, value in from_torchvision(net.state_dict()).items()}
    left = stock.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    x = torch.randn(2, 3, 96, 64)
    ours, theirs = backbone_like(net, "resnet18")(x), stock(x)
    for stage in STAGES:
        assert theirs[stage].abs().mean() > 0.01
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    ["densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5"],
)
@torch.no_grad()
def test_last_map_is_what_torchvision_pools(network):
    net = with_statistics(network)
    head = next(child for name, child in net.named_children() if name in ("avgpool", "classifier", "fc"))
    pooled = []
    head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0].clone()))
    x = torch.randn(2, 3, 64, 64)
    net(x)
    expected = pooled[0].mean((2, 3)) if pooled[0].dim() == 4 else pooled[0]
    res5 = backbone_like(net, network, features=["res5"])(x)["res5"]
    torch.testing.assert_close(res5.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_all_networks_have_four_stages():
    """Without memory for their weights; RegNets, which compute widths by tensors, cannot be built so."""
    names = [name for name in torchvision_cnns() if not name.startswith("regnet")]
    assert len(names) > 40
    with torch.device("meta"):
        for name in names:
            shapes = TorchvisionBackbone(network=name, out_features=STAGES).output_shape()
            assert [shapes[stage].stride for stage in STAGES] == [4, 8, 16, 32], name


def test_only_chosen_features_are_returned():
    backbone = build_backbone(tv_cfg(features=["res3", "res5"]))
    assert list(backbone(torch.zeros(1, 3, 64, 64))) == list(backbone.output_shape()) == ["res3", "res5"]
    assert backbone.size_divisibility == 32


@networks
def test_every_parameter_has_a_gradient(network):
    """Or training in several processes would stop: nothing after the last feature is kept."""
    backbone = build_backbone(tv_cfg(network, features=["res3", "res4"]))
    backbone(torch.randn(2, 3, 64, 64))["res4"].sum().backward()
    assert not [name for name, value in backbone.named_parameters() if value.grad is None]
    assert not any(name.startswith(ENDS[network][3]) for name in backbone.state_dict())
    assert backbone.size_divisibility == 16


@networks
def test_pyramid_has_five_levels(network):
    pyramid = build_backbone(tv_cfg(network, name="build_torchvision_fpn_backbone", features=["res5"]))
    features = pyramid(torch.zeros(1, 3, 64, 64))
    sizes = {name: tuple(map.shape) for name, map in features.items()}
    assert sizes == {f"p{n}": (1, 8, 64 >> n, 64 >> n) for n in (2, 3, 4, 5, 6)}


@pytest.mark.parametrize(("norm", "kind"), [("FrozenBN", FrozenBatchNorm2d), ("SyncBN", nn.SyncBatchNorm)])
def test_batch_norm_is_replaced_and_normalises_alike(norm, kind):
    net = with_statistics("mobilenet_v3_small")  # its epsilon is 0.001; PyTorch's is 0.00001
    backbone = backbone_like(net, "mobilenet_v3_small", norm=norm)
    norms = [module for module in backbone.modules() if isinstance(module, kind)]
    own = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(own) > 10
    assert {module.eps for module in norms} == {0.001}
    assert not any(type(module) is nn.BatchNorm2d for module in backbone.modules())
    if norm == "SyncBN":  # needs a GPU to run
        assert {module.momentum for module in norms} == {0.01}  # PyTorch's is 0.1
    else:
        x = torch.randn(1, 3, 64, 64)
        res5 = backbone(x)["res5"]
        torch.testing.assert_close(res5, net.features(x), rtol=1e-4, atol=1e-5)


def test_layer_norm_of_convnext_stays():
    backbone = build_backbone(tv_cfg("convnext_tiny", norm="FrozenBN"))
    assert any(isinstance(module, torchvision.models.convnext.LayerNorm2d) for module in backbone.modules())


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, set()), (1, {"conv1", "bn1"}), (2, {"conv1", "bn1", "layer1"}), (5, {"conv1", "bn1", *ENDS["resnet18"]})],
)
def test_frozen_up_to_a_stage(freeze_at, frozen):
    """As detectron2's FREEZE_AT: 1 is the stem, 2 the stem and res2, ..."""
    backbone = build_backbone(tv_cfg(freeze_at=freeze_at))
    trained = {name.split(".")[0] for name, value in backbone.named_parameters() if value.requires_grad}
    assert trained == {"conv1", "bn1", *ENDS["resnet18"]} - frozen
    for name, module in backbone.named_modules():
        if name.split(".")[0] in frozen:
            assert not isinstance(module, nn.BatchNorm2d)


def test_the_stem_of_a_convnext_is_frozen_first():
    """Its stem has stride 4, as its first stage."""
    backbone = build_backbone(tv_cfg("convnext_tiny", freeze_at=1))
    assert {name.split(".")[1] for name, value in backbone.named_parameters() if not value.requires_grad} == {"0"}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet19", "MODEL.TORCHVISION.NAME is 'resnet19'.*did you mean resnet1"),
        ("vit_b_16", "MODEL.TORCHVISION.NAME is 'vit_b_16'"),
        ("alexnet", "MODEL.TORCHVISION.NAME is 'alexnet'.*whole strides"),
    ],
)
def test_unfit_network_is_named(network, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(tv_cfg(network))


@pytest.mark.parametrize("features", [["stem"], []])
def test_unknown_feature_is_named_with_those_there_are(features):
    with pytest.raises(ValueError, match=r"OUT_FEATURES .*resnet18 gives res2, res3, res4, res5"):
        build_backbone(tv_cfg(features=features))
