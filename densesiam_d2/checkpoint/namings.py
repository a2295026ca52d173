"""How libraries name the tensors of a ResNet, and the search for such names in a checkpoint."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Network", "networks_in"]

# Hugging Face's word for a layer -> torchvision's, in the main path of a block and in its shortcut.
_LAYER = {"convolution": "conv", "normalization": "bn"}
_SHORTCUT = {"convolution": "downsample.0", "normalization": "downsample.1"}

# Naming -> [(pattern, function that makes the new name)]. The first pattern that matches is used; its group 1 is the
# prefix. New names are those of torchvision, for "detectron2" its own. The last pattern for a block takes whatever else
# lies in it, so that a tensor that is no part of a ResNet (attention, for example) is refused and not left out.
_NAMINGS = {
    "detectron2": [
        (r"(?:(.*?)\.)?res([2-5])\.(\d+\..+)", lambda stage, rest: f"res{stage}.{rest}"),
        # Other people's converters put "stem." also before the names of the head, such as stem.fc.0.weight.
        (r"(?:(.*)\.)?(stem\.conv\d\..+)", lambda rest: rest),
    ],
    "torchvision": [
        (r"(?:(.*?)\.)?layer([1-4])\.(\d+\..+)", lambda stage, rest: f"layer{stage}.{rest}"),
        (r"(?:(.*)\.)?((?:conv1|bn1)\.\w+)", lambda rest: rest),
    ],
    # An nn.Sequential numbers its children. In nn.Sequential(*resnet.children()), as in lightly's tutorials, conv1 is
    # 0, bn1 is 1 and layer1 to layer4 are 4 to 7. If the stem is one child, as in OBoW (valeoai/obow,
    # obow/feature_extractor.py), layer1 to layer4 are 1 to 4.
    "nn.Sequential": [
        (r"(?:(.*?)\.)?([4-7])\.(\d+\.[a-z].+)", lambda n, rest: f"layer{int(n) - 3}.{rest}"),
        (r"(?:(.*)\.)?0\.(weight)", lambda part: f"conv1.{part}"),
        (r"(?:(.*)\.)?1\.(\w+)", lambda part: f"bn1.{part}"),
    ],
    "nn.Sequential with a stem": [
        (r"(?:(.*?)\.)?([1-4])\.(\d+\.[a-z].+)", lambda n, rest: f"layer{n}.{rest}"),
        (r"(?:(.*)\.)?0\.(?:0|Conv|conv1)\.(weight)", lambda part: f"conv1.{part}"),
        (r"(?:(.*)\.)?0\.(?:1|bn|bn1)\.(\w+)", lambda part: f"bn1.{part}"),
    ],
    # huggingface/transformers, src/transformers/models/resnet/modeling_resnet.py
    "Hugging Face": [
        (
            r"(?:(.*?)\.)?encoder\.stages\.([0-3])\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.(\w+)",
            lambda stage, block, n, kind, part: f"layer{int(stage) + 1}.{block}.{_LAYER[kind]}{int(n) + 1}.{part}",
        ),
        (
            r"(?:(.*?)\.)?encoder\.stages\.([0-3])\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)",
            lambda stage, block, kind, part: f"layer{int(stage) + 1}.{block}.{_SHORTCUT[kind]}.{part}",
        ),
        (
            r"(?:(.*?)\.)?encoder\.stages\.([0-3])\.layers\.(\d+\..+)",
            lambda stage, rest: f"layer{int(stage) + 1}.{rest}",
        ),
        (
            r"(?:(.*?)\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)",
            lambda kind, part: f"{_LAYER[kind]}1.{part}",
        ),
    ],
    # Google's SimCLR v2 as Separius/SimCLRv2-Pytorch converts it (convert.py, resnet.py). In the children of a block,
    # convolutions have the numbers 0, 2, 4 and their norms 1, 3, 5.
    "SimCLRv2-Pytorch": [
        (
            r"(?:(.*?)\.)?net\.([1-4])\.blocks\.(\d+)\.net\.([024])\.(weight)",
            lambda stage, block, n, part: f"layer{stage}.{block}.conv{int(n) // 2 + 1}.{part}",
        ),
        (
            r"(?:(.*?)\.)?net\.([1-4])\.blocks\.(\d+)\.net\.([135])\.0\.(\w+)",
            lambda stage, block, n, part: f"layer{stage}.{block}.bn{int(n) // 2 + 1}.{part}",
        ),
        (
            r"(?:(.*?)\.)?net\.([1-4])\.blocks\.(\d+)\.projection\.shortcut\.(weight)",
            lambda stage, block, part: f"layer{stage}.{block}.downsample.0.{part}",
        ),
        (
            r"(?:(.*?)\.)?net\.([1-4])\.blocks\.(\d+)\.projection\.bn\.0\.(\w+)",
            lambda stage, block, part: f"layer{stage}.{block}.downsample.1.{part}",
        ),
        (r"(?:(.*?)\.)?net\.([1-4])\.blocks\.(\d+\..+)", lambda stage, rest: f"layer{stage}.{rest}"),
        (r"(?:(.*?)\.)?net\.0\.0\.(weight)", lambda part: f"conv1.{part}"),
        (r"(?:(.*?)\.)?net\.0\.1\.0\.(\w+)", lambda part: f"bn1.{part}"),
    ],
}


class Network(NamedTuple):
    """Tensors that look like a ResNet.

    Attributes:
        naming: whose names they are: "detectron2", "torchvision" or another key of ``_NAMINGS``.
        prefixes: prefix of its names, then the prefixes of equal copies.
        names: detectron2's name (naming "detectron2") or torchvision's name -> name in the checkpoint.
    """

    naming: str
    prefixes: tuple[str, ...]
    names: dict[str, str]


def networks_in(tensors: Mapping[str, Any]) -> list[Network]:
    """Return every group of tensors with convolutions in all four stages of a ResNet.

    Args:
        tensors: name in the checkpoint -> tensor, from ``tensors_in``.
    """
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in tensors:
        if name.endswith("num_batches_tracked"):
            continue
        for naming, patterns in _NAMINGS.items():
            fits = ((re.fullmatch(pattern, name), rename) for pattern, rename in patterns)
            match, rename = next(((match, rename) for match, rename in fits if match), (None, None))
            if match:
                prefix, *rest = match.groups()
                groups[naming, prefix or ""][rename(*rest)] = name
    for naming, prefix in [key for key in groups if key[0] == "detectron2"]:
        # A C4 detector has res5 in its box head. The norm that Res5ROIHeadsExtraNorm adds there is not of the backbone.
        head = groups.get((naming, re.sub(r"(^|\.)backbone$", r"\1roi_heads", prefix)), {})
        groups[naming, prefix] = {**{b: n for b, n in head.items() if b.startswith("res5.")}, **groups[naming, prefix]}
    networks = []
    for (naming, prefix), names in groups.items():
        stages = {name.split(".")[0] for name in names if re.search(r"\.conv\d\.weight$", name)} - {"stem"}
        if len(stages) == 4:
            networks.append(Network(naming, (prefix,), names))
    return networks
