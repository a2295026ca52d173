"""Write a backbone as ONNX, and compare the file with torch."""

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from densesiam_d2.atomic import atomic_write
from densesiam_d2.checkpoint.layouts import Found
from densesiam_d2.modeling.backbone import TorchvisionBackbone

__all__ = ["save_onnx"]

STAGES = ["res2", "res3", "res4", "res5"]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def save_onnx(path: Path, found: Found, metadata: Mapping[str, Any]) -> float:
    """Write a backbone with the normalisation of its images as an ``.onnx`` file, and run the file once.

    The input ``images`` is (batch, 3, height, width) float32 with values from 0 to 255 in the order of
    ``pixel_format``; mean and std are inside the file. The outputs ``res2`` to ``res5`` are the feature maps at strides
    4 to 32. All sizes from 32 are allowed; sides that are multiples of 32 are best, because some networks leave out the
    border of others. The file stores the metadata, and this description of the input.

    Args:
        path: file to write, ending in ``.onnx``.
        found: the backbone.
        metadata: of the backbone; lists and numbers are stored as JSON.

    Returns:
        The largest difference between a feature of onnxruntime and of torch, as a share of the map's largest value.

    Raises:
        ValueError: a package of the extra "onnx" is missing, or the path has another suffix.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"output {path}: this format needs a name ending in .onnx")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install {' '.join(PACKAGES)}")
    model = _Normalised(_build(found, metadata), metadata["pixel_mean"], metadata["pixel_std"]).eval()
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every step
    sides = {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, 64, 96),),
        input_names=["images"],
        output_names=STAGES,
        dynamic_shapes=({0: torch.export.Dim("batch"), **sides},),
        dynamo=True,
        verbose=False,
    )
    images = f"float32 (batch, 3, height, width), {metadata['pixel_format']}, 0 to 255; mean and std are in the file"
    for key, value in {**metadata, "input": images}.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    with atomic_write(path) as file:
        file.write(program.model_proto.SerializeToString())
    return _largest_difference(path, model)


class _Normalised(nn.Module):
    def __init__(self, backbone: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.backbone((images - self.mean) / self.std)


def _build(found: Found, metadata: Mapping[str, Any]) -> nn.Module:
    if found.kind is None:
        backbone = TorchvisionBackbone(network=metadata["network"], out_features=STAGES)
    else:
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        resnet = cfg.MODEL.RESNETS
        for field, value in found.kind._asdict().items():
            resnet[field.upper()] = value
        resnet.OUT_FEATURES, resnet.STRIDE_IN_1X1 = STAGES, metadata["stride_in_1x1"]
        resnet.NORM = "BN" if "stem.conv1.norm.running_mean" in found.state else "GN"
        backbone = build_backbone(cfg)
    backbone.load_state_dict({name: torch.from_numpy(value) for name, value in found.state.items()})
    return backbone


@torch.no_grad()
def _largest_difference(path: Path, model: nn.Module) -> float:
    """Compare on noise of another size and number than the file was made with."""
    import onnxruntime  # optional

    images = 255 * torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    theirs = onnxruntime.InferenceSession(path).run(STAGES, {"images": images.numpy()})
    ours = [value.numpy() for value in model(images).values()]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(theirs, ours, strict=True))
