"""Find out from the shapes of its tensors which ResNet a state is: depth, groups and widths."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from densesiam_d2.checkpoint.names import blocks_of, check_complete

__all__ = ["ResNetKind", "kind_of"]


class ResNetKind(NamedTuple):
    """The numbers that detectron2 builds a ResNet from; each field is a key of MODEL.RESNETS in lower case."""

    depth: int
    num_groups: int = 1
    width_per_group: int = 64
    stem_out_channels: int = 64
    res2_out_channels: int = 256

    @property
    def name(self) -> str:
        """Its usual name, such as ``ResNet-50``, ``wide ResNet-50-2`` or ``ResNeXt-50 32x4d``."""
        if self.num_groups > 1:
            return f"ResNeXt-{self.depth} {self.num_groups}x{self.width_per_group}d"
        if self.width_per_group > 64:
            return f"wide ResNet-{self.depth}-{self.width_per_group / 64:g}"
        return f"ResNet-{self.depth}"

    @property
    def settings(self) -> str:
        """The config keys and values that differ from an ordinary ResNet of this depth; empty if there are none."""
        ordinary = _ordinary(self.depth)
        names = [name for name in self._fields if getattr(self, name) != getattr(ordinary, name)]
        if "num_groups" in names or "width_per_group" in names:
            names = ["num_groups", "width_per_group", *(n for n in names if n.endswith("channels"))]
        return ", ".join(f"MODEL.RESNETS.{name.upper()} {getattr(self, name)}" for name in names)


def kind_of(state: Mapping[str, Any]) -> ResNetKind:
    """Return which ResNet a complete state is.

    Args:
        state: detectron2 name -> tensor or array, without ``num_batches_tracked``.

    Raises:
        ValueError: it is not one whole ResNet, or a shape is not that of any ResNet that detectron2 builds.
    """
    depth = check_complete(state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    flat = next((n for n, shape in shapes.items() if ".norm." not in n and (len(shape) != 4 or 0 in shape)), None)
    if flat:
        raise ValueError(
            f"{flat} is {shapes[flat]}, but convolutions have 4 dimensions: this looks like one shard of a model "
            "(FSDP, ZeRO); save the full state dict"
        )
    stem, first, second = (shapes[f"{n}.weight"] for n in ("stem.conv1", "res2.0.conv1", "res2.0.conv2"))
    if stem[1:] != (3, 7, 7):
        raise ValueError(
            f"stem.conv1.weight is {stem}: detectron2's ResNets begin with a 7x7 convolution of 3 channels, those for "
            "small images (CIFAR) or other inputs do not"
        )
    if _ordinary(depth).res2_out_channels == 64:  # basic blocks
        kind = _ordinary(depth)
    else:
        per_group = max(second[1], 1)
        kind = ResNetKind(depth, first[0] // per_group, per_group, stem[0], shapes["res2.0.conv3.weight"][0])
    for name, shape in _convolution_shapes(kind).items():
        expected = {
            name: shape,
            **{n: shape[:1] for n in shapes if n.startswith(f"{name.removesuffix('weight')}norm.")},
        }
        for key, wanted in expected.items():
            if shapes[key] != wanted:
                raise ValueError(f"{key} is {shapes[key]}, but a {kind.name} has {wanted}")
    return kind


def _ordinary(depth: int) -> ResNetKind:
    return ResNetKind(depth, res2_out_channels=256 if blocks_of(depth)[1] else 64)


def _convolution_shapes(kind: ResNetKind) -> dict[str, tuple[int, ...]]:
    """Return name -> (out, in / groups, height, width) of every convolution.

    Source: detectron2 ``modeling/backbone/resnet.py``, ``build_resnet_backbone``.
    """
    blocks, bottleneck = blocks_of(kind.depth)
    shapes = {"stem.conv1.weight": (kind.stem_out_channels, 3, 7, 7)}
    inside, width, out = kind.stem_out_channels, kind.num_groups * kind.width_per_group, kind.res2_out_channels
    for stage, num_blocks in enumerate(blocks, start=2):
        for block in range(num_blocks):
            name = f"res{stage}.{block}"
            if bottleneck:
                shapes[f"{name}.conv1.weight"] = (width, inside, 1, 1)
                shapes[f"{name}.conv2.weight"] = (width, width // kind.num_groups, 3, 3)
                shapes[f"{name}.conv3.weight"] = (out, width, 1, 1)
            else:
                shapes[f"{name}.conv1.weight"] = (out, inside, 3, 3)
                shapes[f"{name}.conv2.weight"] = (out, out, 3, 3)
            if block == 0 and (bottleneck or stage > 2):
                shapes[f"{name}.shortcut.weight"] = (out, inside, 1, 1)
            inside = out
        width, out = 2 * width, 2 * out
    return shapes
