"""Recognising whose checkpoint a file is, and taking the ResNet out of it."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from densesiam_d2.checkpoint.names import check_complete, from_torchvision

__all__ = ["Layout", "layout_of", "recognise"]

logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """How one family of checkpoints names its backbone.

    Attributes:
        name: what the user is told.
        tells: prefixes of tensor names that must all occur.
        prefix: prefix of the backbone's tensors.
        torchvision: whether the backbone is named as torchvision's ResNet (else as detectron2's).
    """

    name: str
    tells: tuple[str, ...]
    prefix: str
    torchvision: bool = True


# The first row whose tells all occur wins, so methods with several encoders come before bare prefixes. Of the methods
# with a momentum network SlotCon keeps the teacher, all others keep the online encoder.
# Source: the converters and training scripts of facebookresearch/{simsiam,moco}, WXinlong/DenseCL, zdaxie/PixPro,
# Tete-Xiao/ReSim, CVMI-Lab/SlotCon, HobbitLong/PyContrast, open-mmlab/{OpenSelfSup,mmselfsup}, janghyuncho/PiCIE,
# ZwwWayne/DenseSiam (names only).
LAYOUTS = (
    Layout("detectron2 model with FPN", ("backbone.bottom_up.res",), "backbone.bottom_up.", torchvision=False),
    Layout("detectron2 model", ("backbone.res",), "backbone.", torchvision=False),
    Layout("detectron2 backbone", ("res2.",), "", torchvision=False),
    Layout("SlotCon (teacher)", ("module.grouping_k.",), "module.encoder_k."),
    Layout("MoCo family (query encoder)", ("module.queue",), "module.encoder_q."),
    Layout("PixPro (online encoder)", ("module.projector_k.",), "module.encoder."),
    Layout("SimSiam", ("module.predictor.", "module.encoder.fc."), "module.encoder."),
    Layout("PiCIE (module.backbone)", ("module.backbone.layer1.",), "module.backbone."),
    Layout("OpenMMLab, DenseCL or DenseSiam release (backbone)", ("backbone.layer1.",), "backbone."),
    Layout("DenseCL (encoder_q.0)", ("encoder_q.0.layer1.",), "encoder_q.0."),
    Layout("PyContrast (module.encoder)", ("module.encoder.layer1.",), "module.encoder."),
    Layout("PyContrast (encoder)", ("encoder.layer1.",), "encoder."),
    Layout("torchvision (module)", ("module.layer1.",), "module."),
    Layout("torchvision", ("layer1.",), ""),
)

_CONTAINERS = ("state_dict", "model", "model_ema")


def recognise(checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """Return whose layout a checkpoint has, and its backbone under detectron2's names.

    Args:
        checkpoint: the dict in a checkpoint file, or a model's state dict.

    Returns:
        The layout's name, and name -> float32 array of every tensor of the ResNet but ``num_batches_tracked``. How many
        other tensors were left out is logged.

    Raises:
        ValueError: no layout fits, or the ResNet is incomplete or has tensors left over.
    """
    tensors = _unwrap(checkpoint)
    layout = layout_of(tensors)
    names = _backbone_names(layout, tensors)
    state = {bare: tensors[name] for name, bare in names.items()}
    try:
        state = from_torchvision(state) if layout.torchvision else state
        depth = check_complete(state)
    except ValueError as error:
        raise ValueError(f"layout {layout.name}: {error}") from None
    logger.info("recognised %s: ResNet-%d, %d backbone tensors", layout.name, depth, len(state))
    _log_left_out([n for n in tensors if n not in names and not n.endswith("num_batches_tracked")])
    return layout.name, {name: _as_array(value) for name, value in state.items()}


def layout_of(tensors: Mapping[str, Any]) -> Layout:
    """Return the first layout whose tell-tale prefixes all occur among the names.

    Raises:
        ValueError: none fits.
    """
    for layout in LAYOUTS:
        if all(any(name.startswith(tell) for name in tensors) for tell in layout.tells):
            return layout
    raise ValueError(
        f"unknown checkpoint layout: {len(tensors)} tensors, such as {', '.join(list(tensors)[:5]) or 'none'}; "
        "rename the backbone's tensors as torchvision or detectron2 do"
    )


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    if "experiment_state" in checkpoint:
        raise ValueError(
            "this is a JAX checkpoint of BYOL (google-deepmind): its kernels and padding are not those of a PyTorch "
            "ResNet; convert it to a torchvision ResNet first"
        )
    for key in _CONTAINERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    return {n: v for n, v in checkpoint.items() if isinstance(v, (torch.Tensor, np.ndarray))}


def _backbone_names(layout: Layout, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return name in the file -> name without prefix, of the backbone's tensors but ``num_batches_tracked``."""
    bare_names = {n: n.removeprefix(layout.prefix) for n in tensors if n.startswith(layout.prefix)}
    if layout.torchvision:
        parts = ("conv1.", "bn1.", *(f"layer{i}." for i in range(1, 5)))
    else:
        parts = ("stem.", *(f"res{i}." for i in range(2, 6)))
        # A C4 detector keeps res5 in its box head; the norm that Res5ROIHeadsExtraNorm adds there is the head's own.
        in_head = [n for n in tensors if n.startswith("roi_heads.res5.") and not n.startswith("roi_heads.res5.norm.")]
        bare_names.update({n: n.removeprefix("roi_heads.") for n in in_head})
    return {n: b for n, b in bare_names.items() if b.startswith(parts) and not b.endswith("num_batches_tracked")}


def _log_left_out(names: list[str]) -> None:
    if names:
        groups = Counter(".".join(name.split(".")[:2]) for name in names)
        listed = ", ".join(f"{group} ({count})" for group, count in groups.most_common(12))
        more = f" and {len(groups) - 12} more groups" if len(groups) > 12 else ""
        logger.info("left out %d other tensors: %s%s", len(names), listed, more)


def _as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    return np.ascontiguousarray(value, dtype=np.float32)
