r"""Export the ResNet of any checkpoint, or another CNN of torchvision, as a backbone file.

    python -m densesiam_d2.tools.export_backbone --input output/pretrain/model_final.pth --output backbone.pkl

The ResNet is searched below every prefix. If there are several and the method is unknown, name one by --prefix. Another
CNN is found if the checkpoint was trained here, or a config names it (MODEL.TORCHVISION.NAME). The file also stores the
image format, mean and std that the backbone expects: from --config-file, else from the checkpoint, else the usual ones
of its layout (nearly always torchvision's), else from config.yaml beside it. Where the usual ones are wrong, give a
config, and its keys and values at the end:

    python -m densesiam_d2.tools.export_backbone --input simclr.pth --output backbone.pkl \
        --config-file configs/Base-R50.yaml MODEL.PIXEL_MEAN '[0.0,0.0,0.0]' MODEL.PIXEL_STD '[255.0,255.0,255.0]'

How other libraries load the file of --format torchvision (images must have the printed pixel_format, mean and std):

    weights = torch.load("backbone.pth")
    # torchvision; the missing keys are those of the classifier
    torchvision.models.resnet50().load_state_dict(weights, strict=False)
    # timm: ResNets have torchvision's names
    timm.create_model("resnet50", num_classes=0, checkpoint_path="backbone.pth")
    # mmpretrain, in a config: its ResNet has torchvision's names as well
    backbone = dict(type="ResNet", depth=50, init_cfg=dict(type="Pretrained", checkpoint="backbone.pth"))
    # a MobileNetV2 has other names in timm and mmpretrain, but its layers have the same order
    net = timm.create_model("mobilenetv2_100", num_classes=0)    # or mmpretrain.models.backbones.MobileNetV2()
    from densesiam_d2.checkpoint import rename_in_order
    net.load_state_dict(rename_in_order(weights, net.state_dict()))

--format onnx writes the feature maps res2 to res5 of any number of images with sides of 32 and more. The images are
float32, 0 to 255, in the printed pixel_format; mean and std are inside the file, and its metadata say so. It needs the
packages onnx, onnxscript and onnxruntime (the extra "onnx").
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from densesiam_d2.checkpoint import (
    backbone_metadata,
    expected_metadata,
    known_metadata,
    read_checkpoint,
    recognise,
    save_backbone,
    save_safetensors,
    save_torchvision,
    under_own_names,
    with_kind,
)
from densesiam_d2.checkpoint.export import is_ours
from densesiam_d2.checkpoint.layouts import Found
from densesiam_d2.checkpoint.tensors import as_array
from densesiam_d2.config_checks import check_values
from densesiam_d2.engine.setup import load_config
from densesiam_d2.modeling.backbone import TorchvisionBackbone
from densesiam_d2.tools.command_line import naming, tool
from densesiam_d2.tools.onnx_file import save_onnx

__all__ = ["export_backbone", "main"]


def export_backbone(
    source: Path,
    output: Path,
    *,
    layout: str = "detectron2",
    config_file: Path | None = None,
    prefix: str | None = None,
    opts: Sequence[str] = (),
) -> dict:
    """Write the backbone of a checkpoint and return the metadata written or known.

    Args:
        source: checkpoint of any layout.
        output: file to write: ``.pkl`` for "detectron2", ``.safetensors`` for "safetensors" (detectron2's names as
            well), ``.pth`` for "torchvision", ``.onnx`` for "onnx" (:func:`save_onnx`).
        layout: "detectron2", "safetensors", "torchvision" or "onnx".
        config_file: the config of the training run; None looks beside the checkpoint.
        prefix: which network to take, if the checkpoint has several.
        opts: alternating keys and values that change ``config_file``.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: there are ``opts`` without ``config_file``; the file holds no ResNet or several, or its metadata is
            unknown or contradicts the weights; the layout cannot be written (strides, suffix, missing packages).
    """
    if layout != "onnx" and output.suffix == ".onnx":
        raise ValueError(f"--output {output}: --format onnx writes such files, not --format {layout}")
    if output.resolve() == source.resolve():
        raise ValueError(f"--output {output} is the input, which it would replace: name another file")
    if opts and config_file is None:
        raise ValueError(f"{' '.join(opts)}: keys and values change a config, so give --config-file as well")
    if re.match(r"\w+:/", str(source)):  # Path has taken the second slash away
        raise ValueError(f"--input {source} is an address: download it, and name the file")
    checkpoint = read_checkpoint(source, foreign=True)
    last = checkpoint.get("iteration")  # counted from 0
    iteration = last + 1 if isinstance(last, int) else None
    cfg = _config(source, config_file, opts) if config_file else None
    network = _network(checkpoint, cfg)
    with naming(source):
        found, known = _find(checkpoint, network, prefix, given=cfg is not None)
    # Stored metadata come first: a later command may have replaced the config.yaml beside the checkpoint.
    if cfg is None and known:
        metadata = {"method": found.layout, "iteration": iteration, "source": source.name, **known}
    else:
        cfg = cfg or _config(source, config_file, opts)
        metadata = {**backbone_metadata(cfg, iteration), "source": source.name}
        if found.torchvision:  # somebody else's method: the config only says which images it takes
            metadata["method"] = found.layout
        if found.kind:
            with naming(source):
                metadata = with_kind(metadata, found.kind)
    state = {**found.state, **found.fpn}
    if layout == "torchvision":
        if metadata.get("stride_in_1x1") and metadata.get("depth", 0) >= 50:
            raise ValueError(
                f"{source}: it has the strides in 1x1 convolutions (MODEL.RESNETS.STRIDE_IN_1X1 True), but the ResNets "
                "of torchvision have them in 3x3 convolutions and would compute other features"
            )
        save_torchvision(output, state)
    elif layout == "safetensors":
        save_safetensors(output, state, metadata)
    elif layout == "onnx":
        difference = save_onnx(output, found, metadata)
        print(f"onnxruntime differs from torch by at most {difference:.1e} of the largest feature")
    else:
        save_backbone(output, state, metadata)
    print("\n".join(["metadata:", *(f"  {key}: {value}" for key, value in metadata.items())]))
    print(f"recognised {found.layout}: {found.kind.name if found.kind else network}, {len(found.state)} tensors")
    print(f"wrote {output} ({layout})")
    if found.kind and found.kind.settings:
        print(f"note: a {found.kind.name} is no ResNet-{found.kind.depth}: it needs {found.kind.settings}")
    if found.kind and "stem.conv1.norm.running_mean" not in state:
        print("note: it has no running statistics of batch norms: it needs MODEL.RESNETS.NORM GN or FrozenBN")
    return metadata


def _network(checkpoint: Mapping[str, Any], cfg: CfgNode | None) -> str:
    """Return the name of the CNN of torchvision that a config or else the metadata name; "" for a ResNet."""
    stored = checkpoint.get("metadata")
    facts = expected_metadata(cfg) if cfg else stored if is_ours(stored) else {}
    network = facts.get("network", "")
    return "" if re.match("(wide_)?resnex?t", network) else network


def _find(
    checkpoint: Mapping[str, Any], network: str, prefix: str | None, *, given: bool
) -> tuple[Found, dict[str, Any]]:
    """Return the backbone in a checkpoint, and what is known about its images if no config is given for them."""
    if not network:
        found = recognise(checkpoint, prefix)
        return found, {} if given else known_metadata(checkpoint, found)
    backbone = TorchvisionBackbone(network=network, out_features=["res5"])
    tensors, facts, place = under_own_names(checkpoint, backbone, prefix)
    state = {name: as_array(tensor) for name, tensor in tensors.items()}
    facts = {key: value for key, value in facts.items() if key != "exports"}
    return Found(place, state, None, "torchvision", {}), facts


def _config(source: Path, config_file: Path | None, opts: Sequence[str]) -> CfgNode:
    beside = source.parent / "config.yaml"
    if config_file is None and not beside.is_file():
        raise ValueError(f"{source}: nothing says which images this backbone expects; give --config-file")
    if config_file is not None and not config_file.is_file():
        raise FileNotFoundError(f"--config-file {config_file} does not exist")
    cfg = load_config(str(config_file or beside), list(opts))
    check_values(cfg)
    return cfg


@tool
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="checkpoint (.pth, .pth.tar, .pkl, .safetensors)")
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write (.pkl, .safetensors, .pth for torchvision, .onnx)"
    )
    parser.add_argument("--format", choices=["detectron2", "safetensors", "torchvision", "onnx"], default="detectron2")
    parser.add_argument(
        "--config-file", type=Path, help="config of the training run; default: config.yaml beside input"
    )
    parser.add_argument(
        "--prefix", help="which network to take, of several: keys and names on the way to it, such as teacher.backbone"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="keys and values that change --config-file")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    export_backbone(
        args.input,
        args.output,
        layout=args.format,
        config_file=args.config_file,
        prefix=args.prefix,
        opts=args.opts,
    )


if __name__ == "__main__":
    sys.exit(main())
