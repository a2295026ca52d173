"""Compare a weight file with the model and the config that it is loaded for."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from densesiam_d2.checkpoint.names import depth_of
from densesiam_d2.checkpoint.own_names import named_backbone

__all__ = ["backbone_names", "bare_names", "contradictions", "why_missing"]

# Fact in the metadata of a backbone file -> the config key that must agree with it.
_CONFIG_KEYS = {
    "pixel_format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "depth": "MODEL.RESNETS.DEPTH",
    "num_groups": "MODEL.RESNETS.NUM_GROUPS",
    "width_per_group": "MODEL.RESNETS.WIDTH_PER_GROUP",
    "network": "MODEL.TORCHVISION.NAME",
}


def backbone_names(model: nn.Module) -> list[str]:
    """Return the names of a model's backbone tensors, including res5 in the box head of a C4 detector."""
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with_fpn = any(name.startswith("backbone.bottom_up.") for name in names)
    prefixes = ("backbone.bottom_up." if with_fpn else "backbone.", "roi_heads.res5.")
    return [n for n in names if n.startswith(prefixes) and not n.startswith("roi_heads.res5.norm.")]


def contradictions(metadata: Mapping[str, Any], expect: Mapping[str, Any]) -> list[str]:
    """Return one text for every fact that a file and a config have different values for.

    Args:
        metadata: the facts in the file.
        expect: the facts of the config, from ``expected_metadata``.
    """
    problems = []
    for fact in sorted(expect.keys() & metadata.keys()):
        if fact in ("stride_in_1x1", "width_per_group") and metadata.get("depth") in (18, 34):
            continue  # basic blocks have no 1x1 convolution and no width per group
        in_file, in_config = metadata[fact], expect[fact]
        if not _agree(in_file, in_config):
            problems.append(f"{fact} is {in_file} in the file but {_CONFIG_KEYS[fact]} is {in_config}")
    network = metadata.get("network")
    if network and "depth" in expect and not network.startswith("resnet"):
        problems.append(
            f"the file holds torchvision's {network}, the config builds a ResNet: use a config of that network, such "
            "as configs/own/*_mobilenet_v2*.yaml, or set MODEL.BACKBONE.NAME and MODEL.TORCHVISION.NAME"
        )
    return problems


def why_missing(missing: Collection[str], state: Mapping[str, tuple], model: nn.Module) -> str:
    """Return one sentence with the most likely reason for missing tensors and what to do.

    Args:
        missing: names in the model that the file does not fill.
        state: name in the file -> shape.
        model: the model.
    """
    if named_backbone(model):
        return "The file holds another network: check MODEL.TORCHVISION.NAME"
    if all(name.rpartition(".")[2] in ("running_mean", "running_var") for name in missing):
        return (
            "The file has no running statistics: set MODEL.RESNETS.NORM to the norm it was trained with (GN, or "
            "FrozenBN), or use weights with batch norm"
        )
    try:
        in_file, in_model = depth_of(state), depth_of(bare_names(backbone_names(model)))
    except ValueError:
        in_file = in_model = None
    if in_file != in_model:
        return f"The file holds a ResNet-{in_file}, the model a ResNet-{in_model}: check MODEL.RESNETS.DEPTH"
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in missing:
        for suffix, shape in state.items():
            if (name == suffix or name.endswith(f".{suffix}")) and shape != shapes[name]:
                return f"{suffix} is {shape} in the file but {shapes[name]} in the model: check MODEL.RESNETS"
    return "Convert the file first: python -m densesiam_d2.tools.export_backbone --input FILE --output backbone.pkl"


def unused_statistics(names: Iterable[str], state: Iterable[str]) -> list[str]:
    """Return the running statistics in a file that belong to a backbone's convolutions and that its norms do not have.

    Args:
        names: of the model's backbone tensors, without their prefix.
        state: names in the file, without their prefix.
    """
    names = set(names)
    means = [name for name in state if name.endswith(".norm.running_mean") and name not in names]
    return sorted(name for name in means if f"{name.removesuffix('norm.running_mean')}weight" in names)


def bare_names(names: Iterable[str]) -> list[str]:
    """Return names without the prefix of the backbone, or of the box head that holds its last stage."""
    prefixes = ("backbone.bottom_up.", "backbone.", "roi_heads.")
    return [n.removeprefix(next((p for p in prefixes if n.startswith(p)), "")) for n in names]


def _agree(in_file: Any, in_config: Any) -> bool:
    if isinstance(in_config, list):
        return np.shape(in_file) == np.shape(in_config) and np.allclose(in_file, in_config, atol=0.01)
    return in_file == in_config
