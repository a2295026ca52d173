"""Any CNN of ``torchvision.models`` as a backbone of detectron2."""

import difflib

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

__all__ = ["TorchvisionBackbone", "build_torchvision_backbone", "build_torchvision_fpn_backbone", "torchvision_cnns"]

STAGES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}  # stride -> name

# torchvision's networks run their children in order. The feature maps end before the first child with such a name.
_END = ("avgpool", "classifier", "fc")

# Networks that cannot be a backbone: transformers, and networks without padding, whose strides are not whole numbers.
_UNFIT = ("maxvit", "swin", "vit", "alexnet", "inception", "squeezenet")


def torchvision_cnns() -> list[str]:
    """Return the names of all classification networks of torchvision that can be a backbone."""
    return [name for name in torchvision.models.list_models(torchvision.models) if not name.startswith(_UNFIT)]


class TorchvisionBackbone(Backbone):
    """A CNN of torchvision up to its last feature map, with torchvision's own names of modules and tensors.

    ``res2`` to ``res5`` are the last feature maps at strides 4 to 32, taken after whole blocks. Everything before
    torchvision's pooling belongs to the backbone, such as the last convolution of a MobileNetV2 (1280 channels).

    Attributes:
        network: its name in torchvision.
    """

    @configurable
    def __init__(self, *, network: str, out_features: list[str], norm: str = "", freeze_at: int = 0):
        """Build the network with torchvision's own random initial weights, and find its stages.

        Args:
            network: a name of :func:`torchvision_cnns`.
            out_features: which of "res2", "res3", "res4" and "res5" to return.
            norm: kind of batch norm that replaces ``nn.BatchNorm2d``, with its epsilon and momentum; "" keeps it. Other
                norms, such as the layer norm of a ConvNeXt, stay.
            freeze_at: freeze the first block and all others up to stride ``2 ** freeze_at``, including batch norm. As
                in detectron2, 0 freezes nothing, 1 the stem, and 2 the stem and res2.

        Raises:
            ValueError: an unknown network or feature.
        """
        super().__init__()
        self.network = network
        for name, child in _trunk(network):
            self.add_module(name, child)
        if norm:
            for _, parent, key in list(_batch_norms(self)):
                _replace(parent, key, norm)
        self._blocks = [full for name, child in self.named_children() for full in _blocks_of(name, child)]
        shapes = self._trace()
        # The last block at each stride; dicts keep the last value of a key.
        ends = {STAGES[shape.stride]: block for block, shape in shapes.items() if shape.stride in STAGES}
        self._ends = {block: stage for stage, block in ends.items()}
        if not out_features or not set(out_features) <= ends.keys():
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES (with FPN: MODEL.FPN.IN_FEATURES) is {list(out_features)}; "
                f"torchvision's {network} gives {', '.join(ends)}"
            )
        chosen = {stage: shapes[block] for stage, block in ends.items() if stage in out_features}
        self._out_features = list(chosen)
        self._out_feature_channels = {stage: shape.channels for stage, shape in chosen.items()}
        self._out_feature_strides = {stage: shape.stride for stage, shape in chosen.items()}
        self._drop_after(max(self._blocks.index(ends[stage]) for stage in chosen))
        if freeze_at:
            stem, *others = self._blocks  # the stem of a ConvNeXt has stride 4
            self._freeze([stem, *(block for block in others if shapes[block].stride <= 2**freeze_at)])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None, *, out_features: list[str] | None = None):
        """Read MODEL.TORCHVISION, MODEL.BACKBONE.FREEZE_AT and, without ``out_features``, RESNETS.OUT_FEATURES."""
        return {
            "network": cfg.MODEL.TORCHVISION.NAME,
            "out_features": cfg.MODEL.RESNETS.OUT_FEATURES if out_features is None else out_features,
            "norm": cfg.MODEL.TORCHVISION.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    @property
    def input_facts(self) -> dict:
        """Image format that torchvision's own weights of the network expect, for images of 0-255 values."""
        preset = next(iter(torchvision.models.get_model_weights(self.network))).transforms()
        mean, std = preset.mean, preset.std
        if self.network == "googlenet":  # it converts to these itself (torchvision/models/googlenet.py)
            mean = std = [0.5, 0.5, 0.5]
        return {
            "pixel_format": "RGB",
            "pixel_mean": [255 * value for value in mean],
            "pixel_std": [255 * value for value in std],
        }

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of this side: some networks round sizes down and would ignore the border."""
        return max(self._out_feature_strides.values())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of images (N, 3, H, W): name of the stage -> (N, C, H / stride, W / stride)."""
        features = {}
        for block in self._blocks:
            x = self.get_submodule(block)(x)
            if self._ends.get(block) in self._out_features:
                features[self._ends[block]] = x
        return features

    def blocks_by_stage(self) -> dict[str, list[nn.Module]]:
        """Return the blocks up to the end of each stage, without single layers; "res2" includes those before it."""
        stages, blocks = {}, []
        for name in self._blocks:
            block = self.get_submodule(name)
            if next(block.children(), None) is not None:
                blocks.append(block)
            if name in self._ends:
                stages[self._ends[name]], blocks = blocks, []
        return stages

    @torch.no_grad()
    def _trace(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each block's output, measured with a small image."""
        side = 64
        self.eval()  # one image has no useful batch statistics, and the running ones must not change
        x = torch.zeros(1, 3, side, side, device=next(self.parameters()).device)
        shapes = {}
        for block in self._blocks:
            x = self.get_submodule(block)(x)
            assert side % x.shape[2] == 0, f"{self.network}: {block} gives {tuple(x.shape)}"
            shapes[block] = ShapeSpec(channels=x.shape[1], stride=side // x.shape[2])
        self.train()
        return shapes

    def _drop_after(self, last: int) -> None:
        """Remove the blocks that no feature needs, because DDP waits for the gradient of every parameter."""
        for block in self._blocks[last + 1 :]:
            parent, _, key = block.rpartition(".")
            delattr(self.get_submodule(parent), key)
        self._blocks = self._blocks[: last + 1]

    def _freeze(self, blocks: list[str]) -> None:
        for block in blocks:
            self.get_submodule(block).requires_grad_(False)
        for name, parent, key in list(_batch_norms(self)):
            if any(f"{name}.".startswith(f"{block}.") for block in blocks):
                _replace(parent, key, "FrozenBN")


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Return the network of MODEL.TORCHVISION.NAME with the features of MODEL.RESNETS.OUT_FEATURES."""
    return TorchvisionBackbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Return a feature pyramid with the settings of MODEL.FPN on the network of MODEL.TORCHVISION.NAME."""
    return FPN(
        bottom_up=TorchvisionBackbone(cfg, input_shape, out_features=cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _trunk(network: str) -> list[tuple[str, nn.Module]]:
    """Build a network and return the names and modules of its children before pooling and classifier."""
    names = torchvision_cnns()
    if network not in names:
        near = difflib.get_close_matches(network, names, n=1)
        raise ValueError(
            f"MODEL.TORCHVISION.NAME is {network!r}, which is no CNN of torchvision with features at whole strides"
            + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}")
        )
    options = {"aux_logits": False, "init_weights": True} if network == "googlenet" else {}
    trunk = []
    for name, child in torchvision.models.get_model(network, weights=None, **options).named_children():
        if name in _END:
            break
        trunk.append((name, child))
    if network.startswith("densenet"):
        trunk.append(("relu", nn.ReLU()))  # a function call in torchvision/models/densenet.py, forward
    return trunk


def _blocks_of(name: str, child: nn.Module) -> list[str]:
    """Return the names of the blocks in a child: its own children if it is an nn.Sequential, else the child itself."""
    return [f"{name}.{key}" for key, _ in child.named_children()] if isinstance(child, nn.Sequential) else [name]


def _batch_norms(module: nn.Module):
    """Yield full name, parent and key of every batch norm in a module."""
    for path, parent in module.named_modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                yield f"{path}.{key}".removeprefix("."), parent, key


def _replace(parent: nn.Module, key: str, norm: str) -> None:
    """Replace a new batch norm by another kind of norm with the same epsilon and momentum."""
    old = getattr(parent, key)
    new = get_norm(norm, old.num_features)
    new.eps = old.eps
    if not isinstance(new, FrozenBatchNorm2d):
        new.momentum = old.momentum
    setattr(parent, key, new)
