"""Find the ResNet in a checkpoint of any layout, and return its tensors."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from densesiam_d2.checkpoint.kinds import ResNetKind, kind_of
from densesiam_d2.checkpoint.names import from_torchvision
from densesiam_d2.checkpoint.tensors import as_array, bare_name, tensors_in

__all__ = ["Found", "exported", "recognise"]

logger = logging.getLogger(__name__)

# How repositories name the parts of a ResNet: naming -> [(pattern, function that makes the new name)]. The first
# pattern that matches is used; its group 1 is the prefix. New names are those of torchvision, for "detectron2" its own.
# An nn.Sequential numbers its children. In nn.Sequential(*resnet.children()), as in lightly's tutorials, conv1 is 0,
# bn1 is 1 and layer1 to layer4 are 4 to 7. If the stem is one child, as in OBoW (valeoai/obow,
# obow/feature_extractor.py), layer1 to layer4 are 1 to 4.
_NAMINGS = {
    "detectron2": [
        (r"(?:(.*?)\.)?res([2-5])\.(\d+\..+)", lambda stage, rest: f"res{stage}.{rest}"),
        (r"(?:(.*)\.)?(stem\..+)", lambda rest: rest),
    ],
    "torchvision": [
        (r"(?:(.*?)\.)?layer([1-4])\.(\d+\..+)", lambda stage, rest: f"layer{stage}.{rest}"),
        (r"(?:(.*)\.)?((?:conv1|bn1)\.\w+)", lambda rest: rest),
    ],
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
}


class _Method(NamedTuple):
    """Which network of a method's checkpoint to take, if the checkpoint holds several.

    Attributes:
        name: name of the method and of the network, for messages.
        keep: a part of the prefix of the network to take.
        leave: a part of the prefix of every other network.
        tell: a part of a tensor name that the checkpoint must have as well; "" for no such condition.
    """

    name: str
    keep: str
    leave: str
    tell: str = ""


# Most of these methods have a teacher that follows the trained network. SlotCon and DINO transfer the teacher.
# Source: the converters and evaluation scripts of CVMI-Lab/SlotCon, facebookresearch/{moco,moco-v3,dino},
# zdaxie/PixPro, Tete-Xiao/ReSim, WXinlong/DenseCL, HobbitLong/PyContrast, lucidrains/byol-pytorch, valeoai/obow,
# lightly-ai/lightly, vturrisi/solo-learn, open-mmlab/{OpenSelfSup,mmselfsup} (names only).
_METHODS = (
    _Method("SlotCon (teacher)", "encoder_k", "encoder_q", tell="grouping_k"),
    _Method("MoCo family (query encoder)", "encoder_q", "encoder_k"),
    _Method("MoCo of OpenMMLab (query encoder)", "backbone", "encoder_k"),
    _Method("MoCo v3 (base encoder)", "base_encoder", "momentum_encoder"),
    _Method("PixPro (online encoder)", "encoder", "encoder_k"),
    _Method("PyContrast (trained encoder)", "model", "model_ema", tell="encoder"),
    _Method("DINO (teacher)", "teacher", "student"),
    _Method("DINO of lightly (teacher)", "teacher_backbone", "student_backbone"),
    _Method("BYOL (online encoder)", "online_encoder", "target_encoder"),
    _Method("BYOL of OpenSelfSup (online network)", "online_net", "target_net"),
    _Method("BYOL of OpenMMLab (online network)", "backbone", "target_net"),
    _Method("OBoW (student)", "feature_extractor", "feature_extractor_teacher"),
    _Method("lightly (online backbone)", "backbone", "backbone_momentum"),
    _Method("solo-learn (online backbone)", "backbone", "momentum_backbone"),
)


class Found(NamedTuple):
    """The ResNet of a checkpoint.

    Attributes:
        layout: method, naming and prefix of the network, for messages.
        state: detectron2 name -> float32 array, for every tensor except ``num_batches_tracked``.
        kind: depth, groups and widths.
        torchvision: True if its names are not detectron2's. Such networks are trained with torchvision's conventions.
    """

    layout: str
    state: dict[str, np.ndarray]
    kind: ResNetKind
    torchvision: bool


class _Network(NamedTuple):
    """Tensors that look like a ResNet.

    Attributes:
        naming: key of ``_NAMINGS``.
        prefixes: prefix of its names, then the prefixes of equal copies.
        names: name in ``_NAMINGS`` -> name in the checkpoint.
    """

    naming: str
    prefixes: tuple[str, ...]
    names: dict[str, str]


def recognise(checkpoint: Mapping[str, Any], prefix: str | None = None) -> Found:
    """Find the one ResNet in a checkpoint, under detectron2's names.

    All prefixes are searched. Equal networks count as one. If there are different networks, the checkpoint must be of
    a known method, which says which one to take. The log names the network taken and the number of other tensors.

    Args:
        checkpoint: the dict in a checkpoint file, or a model's state dict.
        prefix: where to look: the keys and names that lead to the network, joined by dots, or the last of them. None
            takes it from ``metadata["exports"]`` in our own checkpoints, and from a known method in others.

    Raises:
        ValueError: there is no ResNet, or there are several; it is incomplete, has extra tensors, or contains NaN.
    """
    if "experiment_state" in checkpoint:
        raise ValueError(
            "this is a JAX checkpoint of BYOL (google-deepmind): its kernels and padding are not those of a PyTorch "
            "ResNet; convert it to a torchvision ResNet first"
        )
    tensors = tensors_in(checkpoint)
    networks = _networks(tensors)
    if not networks:
        raise ValueError(
            f"no ResNet among its {len(tensors)} tensors, such as {', '.join(list(tensors)[:5]) or 'none'}; "
            "rename the backbone's tensors as torchvision or detectron2 do"
        )
    if prefix is None and len(networks) > 1:
        prefix = exported(checkpoint)
    if prefix is not None:
        networks = _below(networks, bare_name(prefix.strip(".")))
    method, network = _choose(networks, tensors)
    kind, state = _checked(network, tensors)
    broken = [name for name in network.names.values() if not np.isfinite(as_array(tensors[name])).all()]
    if broken:
        raise ValueError(
            f"{broken[0]} holds NaN or infinite values ({len(broken)} of {len(state)} tensors do): the training "
            "diverged; give a checkpoint from before"
        )
    layout = f"{method}{network.naming} names {_where(network)}"
    logger.info("recognised %s: %s, %d backbone tensors", layout, kind.name, len(state))
    taken = set(network.names.values())
    _log_left_out([n for n in tensors if n not in taken and not n.endswith("num_batches_tracked")])
    return Found(layout, state, kind, network.naming != "detectron2")


def exported(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the prefix of the network that the model of our own checkpoint exports; None for other checkpoints."""
    metadata = checkpoint.get("metadata")
    exports = metadata.get("exports") if isinstance(metadata, Mapping) else None
    if not isinstance(exports, str):
        return None
    return f"model.{exports}" if isinstance(checkpoint.get("model"), Mapping) else exports


def _networks(tensors: Mapping[str, Any]) -> list[_Network]:
    """Return every group of tensors with convolutions in all four stages of a ResNet."""
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
            networks.append(_Network(naming, (prefix,), names))
    return networks


def _below(networks: list[_Network], prefix: str) -> list[_Network]:
    exact = [n for n in networks if prefix in n.prefixes]
    below = exact or [n for n in networks if f".{prefix}." in f".{n.prefixes[0]}."]
    if not below:
        raise ValueError(f"--prefix {prefix}: no ResNet lies there, but {_listed(networks)}")
    return below


def _choose(networks: list[_Network], tensors: Mapping[str, Any]) -> tuple[str, _Network]:
    """Return the start of the layout text, which names the method ("" if there is none), and the network to take."""
    method, network = _by_method(networks, tensors)
    if network is None:
        networks = _without_copies(networks, tensors)
        method, network = _by_method(networks, tensors)
    if network is not None:
        return method, network
    whole, errors = [], []
    for network in networks:
        try:
            _checked(network, tensors)
            whole.append(network)
        except ValueError as error:
            errors.append(error)
    if len(whole) == 1:
        return "", whole[0]
    if not whole:
        raise errors[0]
    raise ValueError(
        f"it holds {len(whole)} different ResNets, {_listed(whole)}; "
        "choose one with --prefix of python -m densesiam_d2.tools.export_backbone"
    )


def _by_method(networks: list[_Network], tensors: Mapping[str, Any]) -> tuple[str, _Network | None]:
    """Return the only network, or the one that the first matching method of ``_METHODS`` takes; else None."""
    if len(networks) == 1:
        return "", networks[0]
    parts = [{part for prefix in network.prefixes for part in prefix.split(".")} for network in networks]
    told = {part for name in tensors for part in name.split(".")} | {""}
    for method in _METHODS:
        kept = [n for n, own in zip(networks, parts, strict=True) if method.keep in own]
        left = [n for n, own in zip(networks, parts, strict=True) if method.leave in own]
        if len(kept) == 1 and len(left) == len(networks) - 1 and kept[0] not in left and method.tell in told:
            logger.info("%s: took the ResNet %s of those %s", method.name, _where(kept[0]), _listed(networks))
            return f"{method.name}, ", kept[0]
    return "", None


def _without_copies(networks: list[_Network], tensors: Mapping[str, Any]) -> list[_Network]:
    different: list[_Network] = []
    for network in networks:
        for i, other in enumerate(different):
            if other.names.keys() == network.names.keys() and all(
                _equal(tensors[name], tensors[network.names[bare]]) for bare, name in other.names.items()
            ):
                different[i] = other._replace(prefixes=(*other.prefixes, *network.prefixes))
                break
        else:
            different.append(network)
    return different


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and np.array_equal(as_array(a), as_array(b), equal_nan=True)


def _checked(network: _Network, tensors: Mapping[str, Any]) -> tuple[ResNetKind, dict[str, np.ndarray]]:
    """Return which ResNet a network is, and its arrays; raise ValueError if it is not one whole ResNet."""
    state = {bare: as_array(tensors[name]) for bare, name in network.names.items()}
    try:
        renamed = state if network.naming == "detectron2" else from_torchvision(state)
        kind = kind_of(renamed)
    except ValueError as error:
        raise ValueError(f"the ResNet {_where(network)}: {error}") from None
    return kind, renamed


def _where(network: _Network) -> str:
    return f"below {network.prefixes[0]}" if network.prefixes[0] else "at the top"


def _listed(networks: list[_Network]) -> str:
    return ", ".join(_where(network) for network in networks)


def _log_left_out(names: list[str]) -> None:
    if names:
        groups = Counter(".".join(name.split(".")[:2]) for name in names)
        listed = ", ".join(f"{group} ({count})" for group, count in groups.most_common(12))
        more = f" and {len(groups) - 12} more groups" if len(groups) > 12 else ""
        logger.info("left out %d other tensors: %s%s", len(names), listed, more)
