"""Names and shapes of a ResNet's tensors.

Names are detectron2's (``res2.0.conv1.norm.bias``) and torchvision's (``layer1.0.bn1.bias``).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from densesiam_d2.text_lines import listed

__all__ = [
    "ResNetKind",
    "check_complete",
    "convolution_shapes",
    "depth_of",
    "from_torchvision",
    "further_blocks",
    "ordinary",
    "rename_in_order",
    "to_torchvision",
]

T = TypeVar("T")

# Depth -> blocks in res2..res5, and whether they are bottlenecks.
_BLOCKS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

# torchvision's pattern -> detectron2's, matched against whole names; stages are renumbered afterwards.
_TO_DETECTRON2 = [
    (r"conv1\.(\w+)", r"stem.conv1.\1"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", r"res\1.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res\1.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)", r"res\1.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res\1.\2.shortcut.norm.\3"),
]
_TO_TORCHVISION = [
    (r"stem\.conv1\.norm\.(\w+)", r"bn1.\1"),
    (r"stem\.conv1\.(\w+)", r"conv1.\1"),
    (r"res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", r"layer\1.\2.bn\3.\4"),
    (r"res(\d)\.(\d+)\.conv(\d)\.(\w+)", r"layer\1.\2.conv\3.\4"),
    (r"res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", r"layer\1.\2.downsample.1.\3"),
    (r"res(\d)\.(\d+)\.shortcut\.(\w+)", r"layer\1.\2.downsample.0.\3"),
]


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
        plain = ordinary(self.depth)
        names = [name for name in self._fields if getattr(self, name) != getattr(plain, name)]
        if "num_groups" in names or "width_per_group" in names:
            names = ["num_groups", "width_per_group", *(n for n in names if n.endswith("channels"))]
        return ", ".join(f"MODEL.RESNETS.{name.upper()} {getattr(self, name)}" for name in names)


def from_torchvision(state: Mapping[str, T]) -> dict[str, T]:
    """Return a torchvision-named ResNet state under detectron2's names, without its classifier (``fc.*``).

    Args:
        state: tensors or arrays under the names of ``torchvision.models.resnet*``.

    Raises:
        ValueError: a name belongs to no part of a ResNet.

    Source: detectron2 ``tools/convert-torchvision-to-d2.py`` (the same naming; our own implementation).
    """
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    return _rename(kept, _TO_DETECTRON2, stage_shift=1)


def to_torchvision(state: Mapping[str, T]) -> dict[str, T]:
    """Return a detectron2-named ResNet state under torchvision's names; the inverse of :func:`from_torchvision`.

    Args:
        state: tensors or arrays under detectron2's names, without a prefix.

    Raises:
        ValueError: a name belongs to no part of a ResNet.
    """
    return _rename(state, _TO_TORCHVISION, stage_shift=-1)


def rename_in_order(state: Mapping[str, T], theirs: Mapping[str, Any]) -> dict[str, T]:
    """Return the tensors of a network under the names that another library gives to the same network.

    The first tensor gets the first name, and so on, so both libraries must create their layers in the same order. timm
    and mmpretrain do so for torchvision's MobileNetV2.

    Args:
        state: tensors of a backbone in the order of its layers, such as the content of a file for torchvision.
        theirs: ``state_dict()`` of the other library's network without classifier.

    Raises:
        ValueError: the networks have different numbers of tensors, or tensors of different shapes.
    """
    ours, wanted = (
        {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (state, theirs)
    )
    if len(ours) != len(wanted):
        raise ValueError(f"the file has {len(ours)} tensors, the network {len(wanted)}: they are not the same network")
    for (name, value), (other, like) in zip(ours.items(), wanted.items(), strict=True):
        if value.shape != like.shape:
            raise ValueError(
                f"{name} is {tuple(value.shape)}, but {other} is {tuple(like.shape)}: these networks are not the same, "
                "or have their layers in another order"
            )
    return dict(zip(wanted, ours.values(), strict=True))


def _rename(state: Mapping[str, T], rules: list[tuple[str, str]], stage_shift: int) -> dict[str, T]:
    renamed, unknown = {}, []
    for name, value in state.items():
        for pattern, replacement in rules:
            if re.fullmatch(pattern, name):
                new_name = re.sub(pattern, replacement, name)
                renamed[_shift_stage(new_name, stage_shift)] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} tensors are no part of a ResNet: {listed(unknown)}")
    return renamed


def _shift_stage(name: str, shift: int) -> str:
    """Turn ``res1`` into ``res2`` and ``layer2`` into ``layer1``: the two libraries count stages from 2 and from 1."""
    return re.sub(r"^(res|layer)(\d)", lambda m: f"{m[1]}{int(m[2]) + shift}", name)


def ordinary(depth: int) -> ResNetKind:
    """Return the ResNet of a depth, neither wide nor with groups."""
    return ResNetKind(depth, res2_out_channels=256 if _BLOCKS[depth][1] else 64)


def convolution_shapes(kind: ResNetKind) -> dict[str, tuple[int, ...]]:
    """Return name -> (out, in / groups, height, width) of every convolution.

    Source: detectron2 ``modeling/backbone/resnet.py``, ``build_resnet_backbone``.
    """
    blocks, bottleneck = _BLOCKS[kind.depth]
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


def depth_of(state: Iterable[str]) -> int:
    """Return the ResNet depth (18, 34, 50, 101 or 152) whose convolutions fit the names best.

    Args:
        state: detectron2 names, or a dict keyed by them.

    Raises:
        ValueError: there are no ResNet names at all.
    """
    convs = {name for name in state if re.fullmatch(r"(stem\.conv1|res\d\.\d+\.(conv\d|shortcut))\.weight", name)}
    if not convs:
        raise ValueError("no ResNet tensors (stem.conv1.weight, res2.0.conv1.weight, ...) found")
    return min(_BLOCKS, key=lambda depth: len(convs.symmetric_difference(convolution_shapes(ordinary(depth)))))


def further_blocks(own: Iterable[str], in_file: Iterable[str]) -> list[str]:
    """Return the blocks of a file that go on where a network ends, such as res2.2 after its res2.0 and res2.1.

    Args:
        own: names of the network's tensors.
        in_file: names in the file, below the same prefix; Caffe2's, with underscores, too.
    """
    blocks = {block for name in own for block in _numbered(name)}
    sequences = {sequence for sequence, _ in blocks}
    found = {block for name in in_file for block in _numbered(name) if block[0] in sequences and block not in blocks}
    return sorted(f"{sequence}.{number}" for sequence, number in found)


def _numbered(name: str) -> list[tuple[str, str]]:
    parts = name.replace("_", ".").split(".")
    return [(".".join(parts[:i]), part) for i, part in enumerate(parts) if part.isdigit()]


def check_complete(state: Iterable[str]) -> int:
    """Check that the names are those of one whole ResNet, norms included, and return its depth.

    Args:
        state: detectron2 names, or a dict keyed by them, without ``num_batches_tracked``.

    Raises:
        ValueError: tensors are missing, or there are extra ones; the message names both.
    """
    names = set(state)
    depth = depth_of(names)
    # Every batch norm has running statistics; GroupNorm has none.
    has_statistics = any(name.endswith(".running_mean") for name in names)
    norm = ("weight", "bias", "running_mean", "running_var") if has_statistics else ("weight", "bias")
    expected = set()
    for conv in convolution_shapes(ordinary(depth)):
        expected.add(conv)
        expected.update(f"{conv.removesuffix('.weight')}.norm.{part}" for part in norm)
    missing, leftover = sorted(expected - names), sorted(names - expected)
    problems = [f"missing: {listed(missing)}"] * bool(missing) + [f"left over: {listed(leftover)}"] * bool(leftover)
    if problems:
        raise ValueError(f"not a whole ResNet-{depth}; {'; '.join(problems)}")
    return depth
