"""Segment a folder of images.

    python -m densesiam_d2.tools.segment --config-file F --weights W --input I --output O

Writes for every image below I, under the same relative name (links are followed, hidden files are left out):

- ``labels/*.png``: the id of each pixel (8 bit; 16 bit for more than 256 ids), at the image's size,
- ``overlays/*.jpg``: the image with the colours of the ids over it,

and for all images ``legend.png`` and ``classes.json`` (name, colour and share of each id).
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.data.image_io import IMAGE_SUFFIXES, read_image
from densesiam_d2.data.image_listing import walk_images
from densesiam_d2.engine.setup import load_config, replace_sync_bn
from densesiam_d2.modeling import model_output
from densesiam_d2.reporting.label_colors import overlay, palette

__all__ = ["Segmentor", "draw_legend", "fill", "main", "segment_folder"]


def draw_legend(names: list[str], colors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Draw the ids that occur, most frequent first.

    Args:
        names: of the ids.
        colors: (num, 3) uint8 RGB.
        shares: (num,) share of all pixels.

    Returns:
        (rows * 28 + 8, 420, 3) uint8 RGB.
    """
    used = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    canvas = np.full((28 * len(used) + 8, 420, 3), 255, np.uint8)
    for row, i in enumerate(used):
        y = 28 * row + 6
        cv2.rectangle(canvas, (8, y), (40, y + 22), [int(c) for c in colors[i]], cv2.FILLED)
        text = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": 0.5, "color": (0, 0, 0), "lineType": cv2.LINE_AA}
        cv2.putText(canvas, f"{i}  {names[i]}", (50, y + 16), **text)
        cv2.putText(canvas, f"{100 * shares[i]:5.1f} %", (345, y + 16), **text)
    return canvas


class Segmentor:
    """A trained segmentation model, applied to one image at a time."""

    def __init__(self, cfg: CfgNode):
        """Build the model and load ``cfg.MODEL.WEIGHTS``.

        The short side of an image is resized to ``TEST.CENTER_CROP_SIZE``, as in evaluation but without the crop; if
        that is 0, to ``INPUT.MIN_SIZE_TEST``.

        Raises:
            FileNotFoundError: the weight file does not exist.
            ValueError: weights are missing or of another shape, or the model does not segment.
        """
        if model_output(cfg) != "semantic":
            raise ValueError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} predicts no label maps")
        self.model = build_model(cfg).eval()
        fill(self.model, cfg.MODEL.WEIGHTS)
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.resize = T.ResizeShortestEdge(
            cfg.TEST.CENTER_CROP_SIZE or cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.white_level = cfg.INPUT.WHITE_LEVEL

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the ids (H, W) of an image (H, W, 3), uint8 RGB: uint8, or uint16 for more than 256 ids."""
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        if self.bgr:
            resized = resized[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]
        labels = output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].max(dim=0).indices
        return labels.cpu().numpy().astype(np.uint8 if self.num_classes <= 256 else np.uint16)


def fill(model: nn.Module, weights: str) -> None:
    """Load a training checkpoint; its other content, such as the optimizer, is not used.

    Raises:
        ValueError: weights are missing or of another shape.
    """
    checkpoint = read_checkpoint(weights)
    state = {name: torch.as_tensor(value) for name, value in checkpoint.get("model", checkpoint).items()}
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        have, want = tuple(state.get(name, tensor).shape), tuple(tensor.shape)
        if have != want:
            raise ValueError(f"{weights}: {name} is {have}, but {want} by the config: give the one it was trained with")
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"{weights} leaves {len(missing)} tensors of the model unfilled, {', '.join(missing[:3])}, ...: "
            "give the config that it was trained with"
        )


def _images(
    folder: Path, white_level: int, skipped: Counter, unreadable: list[str]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield relative path and pixels of every image below a folder; count other files, and collect read errors."""
    for path in walk_images(folder, skipped):
        try:
            image = read_image(path, white_level=white_level)
        except ValueError as error:
            unreadable.append(str(error))
        else:
            yield Path(path).relative_to(folder), image


def segment_folder(
    segmentor: Segmentor, source: Path, output: Path, names: list[str], colors: np.ndarray, alpha: float = 0.5
) -> dict:
    """Segment every image below a folder and write the files that the module's docstring lists.

    Args:
        segmentor: the model.
        source: folder with images, searched recursively: links are followed, hidden files and folders left out.
        output: folder to write to, outside source.
        names: of the ids.
        colors: (num, 3) uint8 RGB.
        alpha: weight of the colours in the overlays.

    Returns:
        "images" (count), "skipped" (count of other files by ending), "unreadable" (reasons) and "seconds_per_image"
        (network and argmax).

    Raises:
        FileNotFoundError: source is missing or has no readable image.
        ValueError: output lies in source.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"--input {source}: no such folder")
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--output {output} lies in --input {source}: the next run would segment its results")
    skipped, unreadable, written, seconds = Counter(), [], set(), 0.0
    pixels = np.zeros(len(names), np.int64)
    for name, image in _images(source, segmentor.white_level, skipped, unreadable):
        start = time.perf_counter()
        labels = segmentor(image)
        seconds += time.perf_counter() - start
        pixels += np.bincount(labels.ravel(), minlength=len(names))
        stem = name.with_suffix("")
        if stem in written:  # a.jpg and a.png
            stem = name
        written.add(stem)
        _write(output / "labels" / f"{stem}.png", labels)
        _write(output / "overlays" / f"{stem}.jpg", overlay(image, labels, alpha, colors)[:, :, ::-1])
    if not written:
        reason = unreadable[0] if unreadable else f"endings {' '.join(IMAGE_SUFFIXES)}"
        raise FileNotFoundError(f"--input {source}: no readable image in it ({reason}); {skipped.total()} other files")
    shares = pixels / pixels.sum()
    _write(output / "legend.png", draw_legend(names, colors, shares)[:, :, ::-1])
    classes = [
        {"id": i, "name": name, "color": color, "share": float(share)}
        for i, (name, color, share) in enumerate(zip(names, colors.tolist(), shares, strict=True))
    ]
    (output / "classes.json").write_text(json.dumps(classes, indent=1))
    seconds /= len(written)
    return {"images": len(written), "skipped": skipped, "unreadable": unreadable, "seconds_per_image": seconds}


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path}: could not be written")


def _names_and_colors(cfg: CfgNode, matching: str | None) -> tuple[list[str], np.ndarray]:
    """Return name and RGB colour of each id: those of the dataset's classes, or numbered clusters."""
    num = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names, colors = [f"cluster {i}" for i in range(num)], palette(num)
    if matching:
        matched = json.loads(Path(matching).read_text()).get("cluster_to_class")
        if matched is None or len(matched) != num:
            raise ValueError(f"--matching {matching}: no 'cluster_to_class' of {num} clusters in it")
        return [f"{name} = {matched[i] or 'no class'}" for i, name in enumerate(names)], colors
    if cfg.TEST.SEM_SEG_MATCHING == "none":
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else Metadata()
        own = metadata.get("stuff_classes", [])
        classes = cfg.MODEL.CLASS_NAMES or own
        if len(classes) == num:
            names = list(classes)
            colors = np.array(metadata.get("stuff_colors", colors) if classes == own else colors, np.uint8)
    return names, colors


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        required=True,
        help="the yaml that the checkpoint was trained with; config.yaml of its OUTPUT_DIR has the class names too",
    )
    parser.add_argument("--weights", required=True, help="segmentation checkpoint, such as model_final.pth")
    parser.add_argument("--input", required=True, type=Path, help="folder with images")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours in the overlays, 0 to 1")
    parser.add_argument("--matching", help="sem_seg_evaluation.json of a Hungarian evaluation, to name the clusters")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.WEIGHTS = args.weights
        replace_sync_bn(cfg)
        names, colors = _names_and_colors(cfg, args.matching)
        if not 0 <= args.alpha <= 1:
            raise ValueError(f"--alpha {args.alpha} must lie between 0 and 1")
        report = segment_folder(Segmentor(cfg), args.input, args.output, names, colors, args.alpha)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{report['images']} images, {report['seconds_per_image']:.3f} s each, results in {args.output}")
    if report["skipped"]:
        print("skipped:", ", ".join(f"{count} {kind}" for kind, count in report["skipped"].most_common()))
    for reason in report["unreadable"]:
        print(reason)


if __name__ == "__main__":
    main()
