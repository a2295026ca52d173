"""Write backbones to files: ``.pkl`` and ``.safetensors`` with facts about their input, and torchvision's ``.pth``."""

import ast
import copy
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from safetensors.numpy import save
from torch import nn

import densesiam_d2
from densesiam_d2.atomic import atomic_write
from densesiam_d2.checkpoint.files import SAFETENSORS_KEY
from densesiam_d2.checkpoint.layouts import Found, recognise
from densesiam_d2.checkpoint.names import ResNetKind, to_torchvision
from densesiam_d2.layers import unwrap

__all__ = [
    "TORCHVISION_METADATA",
    "backbone_metadata",
    "backbone_state",
    "expected_metadata",
    "from_a_converter",
    "is_ours",
    "known_metadata",
    "save_backbone",
    "save_safetensors",
    "save_torchvision",
    "with_kind",
]

logger = logging.getLogger(__name__)

# Image format of torchvision's ResNets, and of nearly all methods that train them on ImageNet.
TORCHVISION_METADATA = {
    "pixel_format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}
_AUTHOR = "densesiam_d2"
_GIVE_CONFIG = "say which images it takes by --config-file of python -m densesiam_d2.tools.export_backbone"
# Google's SimCLR reads values from 0 to 1, without mean and std (google-research/simclr, data_util.py).
_FROM_0_TO_1 = {**TORCHVISION_METADATA, "pixel_mean": [0.0, 0.0, 0.0], "pixel_std": [255.0, 255.0, 255.0]}


def backbone_state(model: nn.Module | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the backbone of a model (DDP-wrapped or not) or of its state dict under detectron2's names.

    Args:
        model: a module or a state dict whose layout :func:`recognise` knows.

    Returns:
        Name (``stem.conv1.weight``, ``res2.0.conv1.norm.weight``, ...) -> float32 array, a copy. The layers of an FPN
        that was trained with the backbone (ReSim) are added as ``backbone.fpn_lateral5.weight``, and so on.

    Raises:
        ValueError: a state dict whose backbone is not one whole ResNet. The backbone of a module may be of any kind; if
            it is not a whole ResNet, its tensors keep their own names.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        return _with_fpn(recognise(model))
    # A model with student and teacher says in ``exports`` which backbone to keep.
    prefix = getattr(model, "exports", "backbone" if hasattr(model, "backbone") else None)
    try:
        return _with_fpn(recognise(model.state_dict(), prefix))
    except ValueError as error:
        reason = error
    backbone = model.get_submodule(prefix or "")
    backbone = getattr(backbone, "bottom_up", backbone)
    if hasattr(backbone, "network"):
        logger.info("The backbone keeps the names of torchvision's %s", backbone.network)
    else:
        logger.warning("The backbone keeps its own names, and has none of torchvision's: %s", reason)
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in backbone.state_dict().items()}


def _with_fpn(found: Found) -> dict[str, np.ndarray]:
    return copy.deepcopy({**found.state, **found.fpn})


def expected_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Return a config's facts about the input images and the construction of the backbone.

    Returns:
        ``pixel_format``, ``pixel_mean``, ``pixel_std`` (of 0-255 values), ``stride_in_1x1``, ``depth``, ``num_groups``
        and ``width_per_group``. A torchvision network has ``network``, its name, instead of the last three.
    """
    pixels = {
        "pixel_format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(value) for value in cfg.MODEL.PIXEL_STD],
    }
    if cfg.MODEL.BACKBONE.NAME.startswith("build_torchvision_"):
        return {**pixels, "stride_in_1x1": False, "network": cfg.MODEL.TORCHVISION.NAME}
    return {
        **pixels,
        "stride_in_1x1": bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1),
        "depth": int(cfg.MODEL.RESNETS.DEPTH),
        "num_groups": int(cfg.MODEL.RESNETS.NUM_GROUPS),
        "width_per_group": int(cfg.MODEL.RESNETS.WIDTH_PER_GROUP),
    }


def backbone_metadata(cfg: CfgNode, iteration: int | None) -> dict[str, Any]:
    """Return the metadata to store with a backbone trained under a config.

    Args:
        cfg: the config of the training run.
        iteration: number of the last finished iteration; None if unknown.
    """
    return {
        "method": cfg.MODEL.META_ARCHITECTURE,
        "iteration": iteration,
        **expected_metadata(cfg),
        "version": densesiam_d2.__version__,
    }


def known_metadata(checkpoint: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """Return the metadata in a checkpoint, or else the usual facts of its layout.

    Args:
        checkpoint: the dict in a file.
        found: what :func:`recognise` found in it.

    Returns:
        The facts; empty for a checkpoint with detectron2's names, no metadata and no ``matching_heuristics``, because
        nothing is known about it.

    Raises:
        ValueError: the weights are not those of the ResNet that the metadata names.
    """
    metadata = checkpoint.get("metadata")
    if is_ours(metadata):
        facts = {str(key): value for key, value in metadata.items() if _is_plain(value) and key != "exports"}
    elif found.naming == "SimCLRv2-Pytorch":
        facts = dict(_FROM_0_TO_1)
    elif found.torchvision or from_a_converter(checkpoint):
        facts = {**TORCHVISION_METADATA, **_openmmlab_facts(checkpoint)}
    else:
        return {}
    return with_kind(facts, found.kind)


def is_ours(metadata: Any) -> bool:
    """Tell whether the value of a checkpoint's key "metadata", which others use too, has our facts about images."""
    return isinstance(metadata, Mapping) and metadata.keys() >= TORCHVISION_METADATA.keys()


def _order(to_rgb: str) -> str:
    return "RGB" if to_rgb.lower() == "true" else "BGR"


def _openmmlab_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the config in a checkpoint of OpenMMLab says about its images; {} for other checkpoints.

    Its style "caffe" has BGR images, and strides in convolutions of size 1.

    Raises:
        ValueError: the config says different things in different places, or a mean or std is not three plain numbers.
    """
    meta = checkpoint.get("meta")
    text = str(meta.get("config") or meta.get("cfg") or "") if isinstance(meta, Mapping) else ""
    facts = {}
    for fact, pattern, read in (
        ("pixel_mean", r"\bmean['\"]?\s*[=:]\s*([\[(][^])]*[])]|[^\s,)}]+)", _numbers),
        ("pixel_std", r"\bstd['\"]?\s*[=:]\s*([\[(][^])]*[])]|[^\s,)}]+)", _numbers),
        ("pixel_format", r"\b(?:bgr_)?to_rgb['\"]?\s*[=:]\s*([Tt]rue|[Ff]alse)", _order),
        ("stride_in_1x1", r"\bstyle['\"]?\s*[=:]\s*['\"](caffe|pytorch)['\"]", {"caffe": True, "pytorch": False}.get),
    ):
        values = [value for value in map(read, re.findall(pattern, text)) if value is not None]
        if any(value != values[0] for value in values):
            text = f"has several values of {fact}, such as {values[0]}, {values[-1]}"
            raise ValueError(f"the config in its meta {text}; {_GIVE_CONFIG}")
        if values:
            facts[fact] = values[0]
    mean = facts.get("pixel_mean")
    if mean and "pixel_format" not in facts and mean[0] < mean[2]:  # blue is the smallest mean of photographs
        facts["pixel_format"] = "BGR"
    # MMSelfSup normalises values of 0 to 1; Caffe's standard deviation of 1 stands beside means of 0 to 255.
    if max(facts.get("pixel_mean", [256.0])) <= 1 and max(facts.get("pixel_std", [256.0])) <= 1:
        facts |= {key: [255 * value for value in facts[key]] for key in ("pixel_mean", "pixel_std")}
    return facts


def _numbers(text: str) -> list[float] | None:
    """Return the numbers of a list or tuple of three; None for one number, as the config has for random weights."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = None
    if isinstance(value, (int, float)):
        return None
    if not isinstance(value, (list, tuple)) or [type(number) in (int, float) for number in value] != [True] * 3:
        raise ValueError(f"the config in its meta has the mean or std {text}, not three numbers; {_GIVE_CONFIG}")
    return [float(number) for number in value]


def from_a_converter(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether a file was written by one of the scripts that rename torchvision's tensors, such as MoCo's.

    They set ``matching_heuristics``. detectron2's training does not set it, and its reader sets it for files of Caffe2
    and pycls together with the author.
    """
    return bool(checkpoint.get("matching_heuristics")) and checkpoint.get("__author__") not in (
        _AUTHOR,
        "Caffe2",
        "pycls",
    )


def with_kind(metadata: Mapping[str, Any], kind: ResNetKind) -> dict[str, Any]:
    """Return the metadata with the depth, groups and width of the weights added.

    Raises:
        ValueError: the metadata has other values for them.
    """
    own = {name: getattr(kind, name) for name in ("depth", "num_groups", "width_per_group")}
    # Basic blocks (two convolutions) do not use groups and width, so the config may have any value.
    compared = own if kind.depth >= 50 else {"depth": kind.depth}
    for name, value in compared.items():
        if metadata.get(name, value) != value:
            raise ValueError(f"it holds a {kind.name} with {name} {value}, but its config says {name} {metadata[name]}")
    return {**metadata, **own}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def save_backbone(path: str | Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a backbone as a ``.pkl`` that detectron2 loads into any model with the same ResNet.

    Args:
        path: file to write, ending in ``.pkl`` (detectron2 reads other suffixes differently).
        state: name -> array under detectron2's names, from :func:`backbone_state`.
        metadata: from :func:`backbone_metadata`; checked against the config by ``CheckedCheckpointer``.

    Raises:
        ValueError: the path has another suffix.
    """
    _check_suffix(path, ".pkl")
    content = {
        "model": dict(state),
        # detectron2 reads a .pkl without an author as a Caffe2 file; with the heuristics it compares the ends of names.
        "__author__": _AUTHOR,
        "matching_heuristics": True,
        "metadata": dict(metadata),
    }
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


def save_safetensors(path: str | Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a backbone as a ``.safetensors``, a format that cannot hold code, under detectron2's names.

    Args:
        path: file to write, ending in ``.safetensors``.
        state: name -> array under detectron2's names, from :func:`backbone_state`.
        metadata: from :func:`backbone_metadata`; numbers, strings and lists. It is stored in the header as JSON.

    Raises:
        ValueError: the path has another suffix.
    """
    _check_suffix(path, ".safetensors")
    arrays = {name: np.array(value, order="C") for name, value in state.items()}  # save() needs C order
    header = {"format": "pt", SAFETENSORS_KEY: json.dumps(dict(metadata))}
    with atomic_write(path) as file:
        file.write(save(arrays, header))


def save_torchvision(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a backbone as a flat ``.pth`` state dict of a network of ``torchvision.models``, without its classifier.

    Args:
        path: file to write, ending in ``.pth``.
        state: name -> array, from :func:`backbone_state`. A ResNet with detectron2's names gets torchvision's, and the
            layers of an FPN are left out. Other networks have torchvision's names already.

    Raises:
        ValueError: the path has another suffix.
    """
    _check_suffix(path, ".pth")
    state = {name: value for name, value in state.items() if not name.startswith("backbone.fpn_")}
    if "stem.conv1.weight" in state:
        state = to_torchvision(state)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    with atomic_write(path) as file:
        torch.save(tensors, file)


def _check_suffix(path: str | Path, suffix: str) -> None:
    if Path(path).suffix != suffix:
        raise ValueError(f"output {path}: this format needs a name ending in {suffix}")
