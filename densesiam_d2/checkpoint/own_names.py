"""Weights for a backbone whose tensors keep the names of another library, such as torchvision's networks."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from densesiam_d2.checkpoint.export import TORCHVISION_METADATA, is_ours, known_metadata
from densesiam_d2.checkpoint.layouts import equal, exported, recognise
from densesiam_d2.checkpoint.names import further_blocks, to_torchvision
from densesiam_d2.checkpoint.tensors import as_array, refuse_negative_variances, refuse_quantized, tensors_in
from densesiam_d2.text_lines import listed

__all__ = ["named_backbone", "under_own_names"]


def named_backbone(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return prefix and module of a model's backbone if it keeps names of another library, else None."""
    prefix, backbone = "backbone.", getattr(model, "backbone", None)
    if hasattr(backbone, "bottom_up"):
        prefix, backbone = "backbone.bottom_up.", backbone.bottom_up
    return (prefix, backbone) if hasattr(backbone, "network") and hasattr(backbone, "input_facts") else None


def under_own_names(
    checkpoint: Mapping[str, Any], backbone: nn.Module, prefix: str | None = None
) -> tuple[dict[str, torch.Tensor | np.ndarray], dict[str, Any], str]:
    """Find the tensors of a backbone in a checkpoint, below any prefix or in any layout of a ResNet.

    Args:
        checkpoint: the dict in a file.
        backbone: a module with the attributes ``network``, its name in torchvision, and ``input_facts``, the image
            format of torchvision's own weights.
        prefix: where the network lies, if there are several: the keys and names that lead to it, joined by dots.

    Returns:
        Name in the backbone -> tensor; the image format from the checkpoint's metadata, or else torchvision's; and
        where the network was found, for messages.

    Raises:
        ValueError: the checkpoint has no such network, or several.
    """
    names = [name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")]
    tensors = tensors_in(checkpoint)
    lacking = _lacking(names, tensors)
    prefixes = [place for place, lost in lacking.items() if not lost]
    wanted = f"{exported(checkpoint) if prefix is None else prefix}.".removeprefix(".")
    below = [place for place in prefixes if place == wanted] or [
        place for place in prefixes if wanted and f".{place}".endswith(f".{wanted}")
    ]
    if below:
        prefixes = below
    elif prefix is not None:
        places = ", ".join(place.rstrip(".") or "the top" for place in prefixes) or "nowhere"
        raise ValueError(f"--prefix {prefix}: no whole {backbone.network} lies there; there is one below: {places}")
    if prefixes and all(equal(tensors[other + n], tensors[prefixes[0] + n]) for other in prefixes[1:] for n in names):
        inside = [name.removeprefix(prefixes[0]) for name in tensors if name.startswith(prefixes[0])]
        further = further_blocks(names, inside)
        if further:  # the backbone may end before the last blocks of its network
            with torch.random.fork_rng(devices=[]):
                whole = torchvision.models.get_model(backbone.network, weights=None).state_dict()
            further = further_blocks(whole, inside)
        if further:
            raise ValueError(f"it holds a larger network than {backbone.network}, which has no {listed(further, 5)}")
        state = {name: tensors[prefixes[0] + name] for name in names}
        _check(state, backbone)
        facts = checkpoint.get("metadata")
        if not is_ours(facts):
            facts = {**TORCHVISION_METADATA, **backbone.input_facts}
        where = f"below {prefixes[0].rstrip('.')}" if prefixes[0] else "at the top"
        return state, dict(facts), f"{backbone.network} {where}"
    try:
        found = recognise(checkpoint)
    except ValueError as error:
        raise ValueError(_reason(backbone.network, names, lacking, tensors)) from error
    state = to_torchvision(found.state)
    if not set(names) <= state.keys():
        raise ValueError(f"it holds a {found.kind.name}, but MODEL.TORCHVISION.NAME is {backbone.network}")
    return {name: state[name] for name in names}, known_metadata(checkpoint, found), found.layout


def _check(state: Mapping[str, Any], backbone: nn.Module) -> None:
    """Raise ValueError for tensors of another shape, whole numbers, and numbers that are not finite."""
    refuse_quantized(state)
    refuse_negative_variances(state)
    for name, own in backbone.state_dict().items():
        value = state.get(name, own)
        if tuple(value.shape) != tuple(own.shape):
            raise ValueError(
                f"its {name} has the shape {tuple(value.shape)}, that of {backbone.network} is {tuple(own.shape)}: "
                "check MODEL.TORCHVISION.NAME; layers of other widths than torchvision's cannot be loaded"
            )
        if not np.isfinite(as_array(value)).all():
            raise ValueError(f"its {name} holds NaN or infinite values: the training diverged; give one from before")


def _lacking(names: Collection[str], tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return prefix -> missing names, for every prefix with which the first of the names is in the file."""
    first = next(iter(names))
    prefixes = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    return {prefix: [name for name in names if prefix + name not in tensors] for prefix in prefixes}


def _reason(network: str, names: Collection[str], lacking: Mapping[str, list[str]], tensors: Mapping[str, Any]) -> str:
    whole = [prefix.rstrip(".") or "the top" for prefix, lost in lacking.items() if not lost]
    if whole:
        return (
            f"it has several {network}, below {', '.join(whole)}: choose one with --prefix and --config-file of "
            "python -m densesiam_d2.tools.export_backbone"
        )
    told = f"torchvision's {network}, the network that MODEL.TORCHVISION.NAME names"
    if lacking:
        lost = min(lacking.values(), key=len)
        return f"it lacks {len(lost)} of the {len(names)} tensors of {told}, such as {lost[0]}"
    examples = ", ".join(list(tensors)[:3]) or "none"
    return f"it holds nothing of {told}; its {len(tensors)} tensors are such as {examples}"
