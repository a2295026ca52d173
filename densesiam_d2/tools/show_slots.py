r"""Draw what the prototypes of SlotCon stand for: for each, the images that show it best, with its region.

Usage::

    python -m densesiam_d2.tools.show_slots --config-file output/run/config.yaml --weights output/run/model_final.pth \
        --input my_photos --output slots.png

Each row is one prototype, those that win the most pixels first. An image's score for a prototype is the mean cosine of
its pixels with the prototype, over the pixels where this prototype is the best; other pixels are dimmed.
The teacher computes all of it, on the central square of each image, at the size of the views in training (published
pictures: 224 of 256 pixels).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch.nn import functional as F

from densesiam_d2.data import IMAGE_SUFFIXES, UnreadableImageError, read_image
from densesiam_d2.data.augmentation import ResizeCenterCrop
from densesiam_d2.engine.segmentor import fill
from densesiam_d2.engine.setup import load_trained_config
from densesiam_d2.modeling.meta_arch import SlotCon
from densesiam_d2.modeling.meta_arch.output import builds
from densesiam_d2.reporting.pictures import find_records
from densesiam_d2.reporting.slot_drawing import draw_slots, mark_region
from densesiam_d2.tools.command_line import check_output_file, tool

__all__ = ["best_images", "image_scores", "main"]


def image_scores(scores: torch.Tensor) -> torch.Tensor:
    """Return how well images show each slot: the mean cosine over the pixels that the slot wins.

    A slot without pixels in an image gets the mean over all its pixels, because every pixel counts at least 1e-6.

    Args:
        scores: (N, K, h, w) cosines of pixels with prototypes.

    Returns:
        (N, K).

    Source: viz_slots.py in CVMI-Lab/SlotCon.
    """
    weights = torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0) + 1e-6
    return (scores * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


class SlotScorer:
    """A trained SlotCon, applied to one image at a time."""

    def __init__(self, cfg: CfgNode):
        """Build the model and load ``cfg.MODEL.WEIGHTS``; images are seen at the size of the views in training."""
        self.model = build_model(cfg).eval()
        fill(self.model, cfg)
        self.crop = ResizeCenterCrop(cfg.INPUT.SSL.VIEW_SIZE)
        self.white_level = cfg.INPUT.WHITE_LEVEL

    @torch.no_grad()
    def __call__(self, record: dict) -> tuple[np.ndarray, torch.Tensor]:
        """Return the central square (S, S, 3) of an image, uint8 RGB, and its scores (1, K, h, w) on the CPU."""
        image = read_image(record["file_name"], record.get("file_part"), self.white_level)
        square = np.ascontiguousarray(self.crop.get_transform(image).apply_image(image))
        x = self.model.preprocess_image(torch.from_numpy(square.transpose(2, 0, 1).copy()))
        return square, self.model.project(x, self.model.teacher)[1].cpu()


def best_images(
    scorer: SlotScorer, records: Sequence[dict], top: int, num: int
) -> tuple[list[tuple[int, list[int]]], list[UnreadableImageError]]:
    """Find the images that show each slot best.

    Args:
        scorer: the model.
        records: of images, with "file_name".
        top: images per slot.
        num: number of slots.

    Returns:
        The number of each slot, those that win the most pixels first, and the numbers of its images, best first; and
        why images could not be read, which are left out.

    Raises:
        UnreadableImageError: no image can be read.
    """
    scores, read, unreadable, pixels = [], [], [], 0
    for i, record in enumerate(records):
        try:
            maps = scorer(record)[1]
        except UnreadableImageError as error:
            unreadable.append(error)
            continue
        scores.append(image_scores(maps))
        read.append(i)
        pixels = pixels + torch.bincount(maps.argmax(dim=1).flatten(), minlength=maps.shape[1])
    if not read:
        raise unreadable[0]
    scores = torch.cat(scores)  # (N, K)
    used = [k for k in pixels.argsort(descending=True, stable=True).tolist() if pixels[k] > 0]
    best = [(k, scores[:, k].topk(min(top, len(read))).indices.tolist()) for k in used[:num]]
    return [(k, [read[i] for i in rows]) for k, rows in best], unreadable


def _region(scores: torch.Tensor, slot: int, size: tuple[int, int]) -> np.ndarray:
    """Return where a slot has the best score (1, K, h, w), after the scores are resized to (H, W)."""
    resized = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return (resized[0].argmax(dim=0) == slot).numpy()


@tool
def main(args: list[str] | None = None) -> None:
    """Draw the slots of a trained SlotCon into one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the yaml that the checkpoint was trained with")
    parser.add_argument("--weights", required=True, help="checkpoint of SlotCon, such as model_final.pth")
    parser.add_argument("--input", help="a folder of images; by default DATASETS.TRAIN of the config")
    parser.add_argument("--output", required=True, type=Path, help="the picture to write, such as slots.png")
    parser.add_argument("--num", type=int, default=20, help="number of slots (default 20)")
    parser.add_argument("--top", type=int, default=5, help="images per slot (default 5)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="changes of the config, as KEY VALUE pairs")
    arguments = parser.parse_args(args)
    for name in ("num", "top"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} must be at least 1")

    _draw(arguments)


def _draw(arguments: argparse.Namespace) -> None:
    if arguments.output.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--output {arguments.output} must end like an image, such as slots.png")
    check_output_file("--output", arguments.output)
    cfg = load_trained_config(arguments.config_file, arguments.weights, arguments.opts)
    if not builds(cfg, SlotCon):
        raise ValueError(
            f"{arguments.config_file} trains {cfg.MODEL.META_ARCHITECTURE}, which has no slots; SlotCon has"
        )
    records = find_records(cfg, arguments.input)
    scorer, rows = SlotScorer(cfg), []
    slots, unreadable = best_images(scorer, records, arguments.top, arguments.num)
    for slot, images in slots:
        drawn = [scorer(records[i]) for i in images]
        rows.append((str(slot), [mark_region(x, _region(scores, slot, x.shape[:2])) for x, scores in drawn]))
    Image.fromarray(draw_slots(rows)).save(arguments.output)
    num = len(records) - len(unreadable)
    print(f"{len(rows)} of {cfg.MODEL.SLOTCON.SLOTS} slots drawn in {arguments.output}, from {num} images")
    if unreadable:
        print(f"images that could not be read, and are left out: {len(unreadable)}, such as: {unreadable[0]}")


if __name__ == "__main__":
    sys.exit(main())
