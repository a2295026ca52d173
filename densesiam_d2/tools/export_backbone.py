"""Turn any checkpoint with a ResNet in it into a backbone file.

    python -m densesiam_d2.tools.export_backbone --input output/pretrain/model_final.pth --output backbone.pkl

What the backbone expects of its images goes into the file: from --config-file, else from the checkpoint itself, else
from config.yaml beside it, else (torchvision-named checkpoints) from torchvision's conventions.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densesiam_d2.checkpoint import (
    backbone_metadata,
    depth_of,
    known_metadata,
    read_checkpoint,
    recognise,
    save_backbone,
    save_safetensors,
    save_torchvision,
)
from densesiam_d2.engine.setup import load_config

__all__ = ["export_backbone", "main"]


def export_backbone(source: Path, output: Path, *, layout: str = "detectron2", config_file: Path | None = None) -> dict:
    """Write the backbone of a checkpoint and return the metadata written or known.

    Args:
        source: checkpoint of any layout that ``recognise`` knows.
        output: file to write: ``.pkl`` for "detectron2", ``.safetensors`` for "safetensors" (detectron2's names as
            well), ``.pth`` for "torchvision".
        layout: "detectron2", "safetensors" or "torchvision".
        config_file: the config that the checkpoint was trained under, if not beside it.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the checkpoint is not recognised, or its metadata is unknown or contradicts the weights.
    """
    checkpoint = read_checkpoint(source)
    name, state = recognise(checkpoint)
    depth = depth_of(state)
    metadata = _metadata(checkpoint, name, source, config_file)
    if metadata.setdefault("depth", depth) != depth:
        raise ValueError(f"{source} holds a ResNet-{depth}, but its config says depth {metadata['depth']}")
    if layout == "torchvision":
        save_torchvision(output, state)
    elif layout == "safetensors":
        save_safetensors(output, state, metadata)
    else:
        save_backbone(output, state, metadata)
    print(f"recognised {name}: ResNet-{depth}, {len(state)} tensors")
    print("\n".join(f"  {key}: {value}" for key, value in metadata.items()))
    print(f"wrote {output} ({layout})")
    return metadata


def _metadata(checkpoint: Mapping[str, Any], layout: str, source: Path, config_file: Path | None) -> dict[str, Any]:
    beside = source.parent / "config.yaml"
    known = known_metadata(checkpoint, layout)
    last = checkpoint.get("iteration")  # counted from 0
    iteration = None if last is None else last + 1
    if config_file is None and known:  # surer than a config.yaml, which a later command may have replaced
        return {"method": layout, "iteration": iteration, **known}
    if config_file is None and not beside.is_file():
        raise ValueError(f"{source}: nothing says which images this backbone expects; give --config-file")
    config_file = config_file or beside
    if not config_file.is_file():
        raise FileNotFoundError(f"--config-file {config_file} does not exist")
    return backbone_metadata(load_config(str(config_file)), iteration)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Turn any checkpoint with a ResNet in it into a backbone file.")
    parser.add_argument("--input", type=Path, required=True, help="checkpoint (.pth, .pth.tar, .pkl, .safetensors)")
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write (.pkl, .safetensors, or .pth for torchvision)"
    )
    parser.add_argument("--format", choices=["detectron2", "safetensors", "torchvision"], default="detectron2")
    parser.add_argument(
        "--config-file", type=Path, help="config of the training run; default: config.yaml beside input"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        export_backbone(args.input, args.output, layout=args.format, config_file=args.config_file)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
