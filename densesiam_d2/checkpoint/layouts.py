"""Find the ResNet in a checkpoint of any layout, and return its tensors."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from densesiam_d2.checkpoint.kinds import kind_of
from densesiam_d2.checkpoint.names import ResNetKind, from_torchvision
from densesiam_d2.checkpoint.namings import Network, networks_in
from densesiam_d2.checkpoint.tensors import as_array, bare_name, refuse_negative_variances, refuse_quantized, tensors_in
from densesiam_d2.text_lines import listed

__all__ = ["Found", "equal", "exported", "recognise"]

logger = logging.getLogger(__name__)


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
# lightly-ai/lightly, Lightning-AI/lightning-bolts, vturrisi/solo-learn and open-mmlab/{OpenSelfSup,mmselfsup} (names
# only).
_METHODS = (
    _Method("SlotCon (teacher)", "encoder_k", "encoder_q", tell="grouping_k"),
    _Method("MoCo family (query encoder)", "encoder_q", "encoder_k"),
    _Method("MoCo of OpenMMLab (query encoder)", "backbone", "encoder_k"),
    _Method("MoCo v3 (base encoder)", "base_encoder", "momentum_encoder"),
    _Method("PixPro (online encoder)", "encoder", "encoder_k"),
    _Method("PyContrast (trained encoder)", "model", "model_ema", tell="contrast"),
    _Method("DINO (teacher)", "teacher", "student", tell="dino_loss"),
    _Method("DINO of lightly (teacher)", "teacher_backbone", "student_backbone"),
    _Method("BYOL (online encoder)", "online_encoder", "target_encoder"),
    _Method("BYOL of Lightning Bolts (online network)", "online_network", "target_network"),
    _Method("BYOL of OpenSelfSup (online network)", "online_net", "target_net"),
    _Method("BYOL of OpenMMLab (online network)", "backbone", "target_net"),
    _Method("OBoW (student)", "feature_extractor", "feature_extractor_teacher"),
    _Method("lightly (online backbone)", "backbone", "backbone_momentum"),
    _Method("solo-learn (online backbone)", "backbone", "momentum_backbone"),
    _Method("solo-learn (online encoder)", "encoder", "momentum_encoder"),
)


class Found(NamedTuple):
    """The backbone of a checkpoint.

    Attributes:
        layout: method, naming and prefix of the network, for messages.
        state: detectron2 name -> float32 array, for every tensor except ``num_batches_tracked``.
        kind: depth, groups and widths of a ResNet; None for another network, whose names are torchvision's.
        naming: whose names the file uses: "detectron2", "torchvision", "Hugging Face", ...
        fpn: name in a detectron2 detector -> float32 array, for the FPN layers that were trained with the ResNet, as
            ReSim does; mostly empty.
    """

    layout: str
    state: dict[str, np.ndarray]
    kind: ResNetKind | None
    naming: str
    fpn: dict[str, np.ndarray]

    @property
    def torchvision(self) -> bool:
        """True if the names are not detectron2's. Such networks are built with torchvision's conventions."""
        return self.naming != "detectron2"


def recognise(checkpoint: Mapping[str, Any], prefix: str | None = None) -> Found:
    """Find the one ResNet in a checkpoint, under detectron2's names.

    All prefixes are searched. Equal networks count as one. If there are different networks, the checkpoint must be of
    a known method, which says which one to take. The log names the network taken and the number of other tensors.

    Args:
        checkpoint: the dict in a checkpoint file, or a model's state dict.
        prefix: where to look: the keys and names that lead to the network, joined by dots, or the last of them. None
            takes it from ``metadata["exports"]`` in our own checkpoints, and from a known method in others.

    Raises:
        ValueError: there is no ResNet, or there are several; it is incomplete, has extra tensors, or contains NaN or
            whole numbers.
    """
    tensors = tensors_in(checkpoint)
    networks = networks_in(tensors)
    architecture = checkpoint.get("arch")
    if isinstance(architecture, str) and re.search(r"resnet(aa|blur)\d", architecture):
        raise ValueError(f"its arch is {architecture}, which smooths before strides and is not built here")
    if not networks:
        hint = "rename the backbone's tensors as torchvision or detectron2 do; for another CNN of torchvision give "
        hint += "--config-file with its MODEL.TORCHVISION.NAME"
        if any(name.endswith("conv1_w") for name in tensors):
            hint = "these are Caffe2's names: name the file by MODEL.WEIGHTS, which reads it as it is"
        raise ValueError(
            f"no ResNet among its {len(tensors)} tensors, such as {', '.join(list(tensors)[:5]) or 'none'}; {hint}"
        )
    if prefix is None and len(networks) > 1:
        prefix = exported(checkpoint)
    if prefix is not None:
        networks = _below(networks, prefix.strip("."))
    method, network = _choose(networks, tensors)
    kind, state = _checked(network, tensors)
    fpn = _fpn_beside(network, tensors)
    taken = {*network.names.values(), *fpn.values()}
    refuse_quantized({name: value for name, value in tensors.items() if name in taken})
    broken = [name for name in tensors if name in taken and not np.isfinite(as_array(tensors[name])).all()]
    if broken:
        raise ValueError(
            f"{broken[0]} holds NaN or infinite values ({len(broken)} of {len(taken)} tensors do): the training "
            "diverged; give a checkpoint from before"
        )
    refuse_negative_variances({name: value for name, value in tensors.items() if name in taken})
    layout = f"{method}{network.naming} names {_where(network)}"
    logger.info("recognised %s: %s, %d backbone tensors", layout, kind.name, len(state))
    if fpn:
        logger.info("with %d tensors of the FPN that was trained with it", len(fpn))
    _log_left_out([n for n in tensors if n not in taken and not n.endswith("num_batches_tracked")])
    return Found(layout, state, kind, network.naming, {bare: as_array(tensors[name]) for bare, name in fpn.items()})


def exported(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the prefix of the network that the model of our own checkpoint exports; None for other checkpoints."""
    metadata = checkpoint.get("metadata")
    exports = metadata.get("exports") if isinstance(metadata, Mapping) else None
    if not isinstance(exports, str):
        return None
    return f"model.{exports}" if isinstance(checkpoint.get("model"), Mapping) else exports


def _below(networks: list[Network], prefix: str) -> list[Network]:
    exact = [n for n in networks if prefix in n.prefixes]
    prefix = prefix if exact else bare_name(prefix)  # wrappers are left out of names where that tells them apart
    exact = exact or [n for n in networks if prefix in n.prefixes]
    below = exact or [n for n in networks if f".{prefix}." in f".{n.prefixes[0]}."]
    if not below:
        raise ValueError(f"--prefix {prefix}: no ResNet lies there, but {listed(map(_where, networks))}")
    return below


def _choose(networks: list[Network], tensors: Mapping[str, Any]) -> tuple[str, Network]:
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
        others = "; ".join(map(str, errors))
        logger.warning(
            "took the ResNet %s, the only one of %d that is whole: %s", _where(whole[0]), len(networks), others
        )
        return "", whole[0]
    if not whole:
        raise errors[0]
    raise ValueError(
        f"it holds {len(whole)} different ResNets, {listed(map(_where, whole))}; "
        "choose one with --prefix of python -m densesiam_d2.tools.export_backbone"
    )


def _by_method(networks: list[Network], tensors: Mapping[str, Any]) -> tuple[str, Network | None]:
    """Return the only network, or the one that the first matching method of ``_METHODS`` takes; else None."""
    if len(networks) == 1:
        return "", networks[0]
    parts = [{part for prefix in network.prefixes for part in prefix.split(".")} for network in networks]
    told = {part for name in tensors for part in name.split(".")} | {""}
    for method in _METHODS:
        kept = [n for n, own in zip(networks, parts, strict=True) if method.keep in own]
        left = [n for n, own in zip(networks, parts, strict=True) if method.leave in own]
        if len(kept) == 1 and len(left) == len(networks) - 1 and kept[0] not in left and method.tell in told:
            logger.info(
                "%s: took the ResNet %s of those %s", method.name, _where(kept[0]), listed(map(_where, networks))
            )
            return f"{method.name}, ", kept[0]
    return "", None


def _without_copies(networks: list[Network], tensors: Mapping[str, Any]) -> list[Network]:
    different: list[Network] = []
    for network in networks:
        for i, other in enumerate(different):
            if other.names.keys() == network.names.keys() and all(
                equal(tensors[name], tensors[network.names[bare]]) for bare, name in other.names.items()
            ):
                different[i] = other._replace(prefixes=(*other.prefixes, *network.prefixes))
                break
        else:
            different.append(network)
    return different


def equal(a: Any, b: Any) -> bool:
    """Tell whether two tensors or arrays have the same shape and values; NaN equals NaN."""
    return a.shape == b.shape and np.array_equal(as_array(a), as_array(b), equal_nan=True)


def _checked(network: Network, tensors: Mapping[str, Any]) -> tuple[ResNetKind, dict[str, np.ndarray]]:
    """Return which ResNet a network is, and its arrays; raise ValueError if it is not one whole ResNet."""
    state = {bare: as_array(tensors[name]) for bare, name in network.names.items()}
    try:
        renamed = state if network.naming == "detectron2" else from_torchvision(state)
        kind = kind_of(renamed)
    except ValueError as error:
        own = f"{network.prefixes[0]}." if network.prefixes[0] else ""
        deep = any(f"{own}{stem}.weight" in tensors for stem in ("stem.3", "conv1.3", "stem.conv2"))
        hint = "; it has a deep stem (mmseg's V1c, timm's d): take a network that begins with one 7x7 convolution"
        raise ValueError(f"the ResNet {_where(network)}: {error}{hint if deep else ''}") from None
    return kind, renamed


def _fpn_beside(network: Network, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return detectron2 name -> name in the checkpoint of the FPN convolutions beside a network's own tensors.

    They are among the network's tensors, or below ``head.pyramid`` beside ``backbone``, as in this project's ReSim.

    Source: Tete-Xiao/ReSim moco/models.py and detection/convert-pretrain-to-detectron2.py (names only). Its FPN with
    batch norm (--fpn-bn) has other names and is left out.
    """
    own = f"{network.prefixes[0]}." if network.prefixes[0] else ""
    places = rf"{re.escape(own)}(?:backbone\.)?|{re.escape(own.removesuffix('backbone.'))}head\.pyramid\."
    pattern = rf"(?:{places})(fpn_(?:lateral|output)[2-5]\.(?:weight|bias))"
    matches = ((re.fullmatch(pattern, name), name) for name in tensors)
    return {f"backbone.{match[1]}": name for match, name in matches if match}


def _where(network: Network) -> str:
    return f"below {network.prefixes[0]}" if network.prefixes[0] else "at the top"


def _log_left_out(names: list[str]) -> None:
    if names:
        groups = Counter(".".join(name.split(".")[:2]) for name in names)
        counts = [f"{group} ({count})" for group, count in groups.most_common()]
        logger.info("left out %d other tensors: %s", len(names), listed(counts))
