r"""Apply any trained model to a folder, a list of images or a video: pictures, predictions and a table of counts.

    python -m densesiam_d2.tools.predict --config-file output/own_mask_rcnn/config.yaml \
        --weights output/own_mask_rcnn/model_final.pth --input /data/new_images --output predicted --threshold 0.6

The config is the yaml that the checkpoint was trained with; ``config.yaml`` of its OUTPUT_DIR also has the names of the
classes. The input is a folder (links are followed, hidden files are left out), one or more images, a list (a ``.txt``
file with one image a line), or a video (``--every 10`` takes every tenth frame). Files that cannot be read are named
at the end, with the number of frames that a damaged video lacks.

Models of boxes or instances write

- ``overlays/*.jpg``: each image with what was found in it,
- ``coco_results.json``: the predictions in COCO's format of results (boxes, masks as RLE, scores),
- ``images.json``: the images and categories that the ids in it stand for (pycocotools loads it, and with ``loadRes``
  the results),
- ``counts.csv``: one row for each image, with the number of objects and their area in pixels, in all and for each
  class; the area of an object is that of its mask, or of its box if the model has no masks.

``--threshold`` is the lowest score of an object (default 0.5). An image has at most ``TEST.DETECTIONS_PER_IMAGE``
objects; how many images have as many is told at the end.

Semantic models, also those that were trained without labels, go through :mod:`densesiam_d2.tools.segment`: label maps
and overlays, ``counts.csv`` with the connected regions and pixels of each class, a gallery of the classes, and more.
Then ``--threshold`` is the lowest probability of a pixel's class (default 0); other pixels get the id 255.

Exit status: 0, also if some files could not be read; 2 for wrong usage or weights, or if none could; 75 when stopped.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from densesiam_d2.atomic import atomic_write
from densesiam_d2.data.image_sources import ImageSource
from densesiam_d2.engine.segmentor import fill
from densesiam_d2.engine.setup import load_trained_config
from densesiam_d2.labels.counts import CountsWriter
from densesiam_d2.modeling import model_output
from densesiam_d2.reporting.label_colors import palette
from densesiam_d2.reporting.text import plain
from densesiam_d2.text_lines import printable
from densesiam_d2.tools import segment
from densesiam_d2.tools.command_line import tool

__all__ = ["build_predictor", "class_names", "draw_instances", "main", "predict_instances"]

MAX_WRITTEN = 40  # objects in one image; with more, their names and scores would hide the picture


def build_predictor(cfg: CfgNode) -> DefaultPredictor:
    """Return detectron2's predictor with the weights of ``cfg.MODEL.WEIGHTS``; it takes BGR images.

    Raises:
        FileNotFoundError: the weight file does not exist.
        ValueError: weights are missing or of another shape.
    """
    empty = cfg.clone()
    empty.MODEL.WEIGHTS = ""  # the stock predictor would go on with random values where weights do not fit
    predictor = DefaultPredictor(empty)
    fill(predictor.model, cfg)
    return predictor


def class_names(cfg: CfgNode) -> list[str]:
    """Return the names of a detector's classes: of the config, of its data sets, or "class 0", "class 1", ..."""
    num = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    known = [MetadataCatalog.get(name).get("thing_classes", []) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)]
    for names in (cfg.MODEL.CLASS_NAMES, *known):
        if len(names) == num:
            return list(names)
    return [f"class {i}" for i in range(num)]


def draw_instances(image: np.ndarray, instances: Instances, classes: list[str]) -> np.ndarray:
    """Draw masks (without masks: boxes), and of at most 40 objects the score and, if there are several, the class.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: what was predicted, on the CPU.
        classes: names of the classes. Several classes have a colour each; with one class, each object has its own.

    Returns:
        (H, W, 3) uint8 RGB; an image with a long side below 640 pixels is drawn larger.
    """
    ids = instances.pred_classes.tolist()
    colors = palette(len(ids)) if len(classes) == 1 else palette(len(classes))[ids]
    labels = None
    if len(ids) <= MAX_WRITTEN:
        names = [""] if len(classes) == 1 else [f"{name} " for name in classes]
        labels = [plain(f"{names[i]}{score:.0%}") for i, score in zip(ids, instances.scores.tolist(), strict=True)]
    shapes = {"boxes": instances.pred_boxes}
    if instances.has("pred_masks") and image.shape[1] != 2:  # the visualizer takes two columns for polygons
        shapes = {"masks": list(instances.pred_masks.numpy())}
    canvas = Visualizer(image, Metadata(), scale=max(1.0, 640 / max(image.shape[:2])))
    return canvas.overlay_instances(**shapes, labels=labels, assigned_colors=list(colors / 255)).get_image()


def predict_instances(predictor: DefaultPredictor, source: ImageSource, output: Path, classes: list[str]) -> list[int]:
    """Write the files that the module's docstring lists.

    Args:
        predictor: the model; its config has the threshold.
        source: the images.
        output: folder to write to.
        classes: names of the classes.

    Returns:
        The number of objects in each image.

    Raises:
        FileNotFoundError: the source has no readable image.
    """
    images, written, num_objects, separator = [], set(), [], b"\n"
    with CountsWriter(output / "counts.csv", classes) as counts, atomic_write(output / "coco_results.json") as results:
        results.write(b"[")
        for name, image in tqdm(source, total=source.total, unit=" images", disable=None):  # no bar in a log file
            instances = predictor(image[:, :, ::-1])["instances"].to("cpu")
            height, width = image.shape[:2]
            images.append({"id": len(images) + 1, "file_name": name.as_posix(), "width": width, "height": height})
            for found in instances_to_coco_json(instances, images[-1]["id"]):
                found["category_id"] += 1  # as in images.json
                results.write(separator + json.dumps(found).encode())
                separator = b",\n"
            num_objects.append(len(instances))
            counts.add(name.as_posix(), (height, width), *_counts(instances, len(classes)))
            drawn = draw_instances(image, instances, classes)
            segment.write_image(output / "overlays" / f"{segment.output_stem(name, written)}.jpg", drawn[:, :, ::-1])
        results.write(b"\n]\n")
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    with atomic_write(output / "images.json") as file:
        file.write(json.dumps({"images": images, "categories": categories, "annotations": []}, indent=1).encode())
    return num_objects


def _counts(instances: Instances, num_classes: int) -> tuple[list[int], list[float]]:
    """Return number and area in pixels of the objects of each class."""
    ids = instances.pred_classes.numpy()
    areas = instances.pred_masks.flatten(1).sum(dim=1) if instances.has("pred_masks") else instances.pred_boxes.area()
    return np.bincount(ids, minlength=num_classes).tolist(), np.bincount(ids, areas.numpy(), num_classes).tolist()


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config.yaml of the OUTPUT_DIR of the training")
    parser.add_argument("--weights", required=True, help="checkpoint, such as model_final.pth")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        type=Path,
        help="folder with images, one or more images, a list of them (.txt), or a video",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--threshold", type=float, help="lowest score or probability (see above)")
    parser.add_argument("--every", type=int, help="of a video, take every n-th frame (default: all)")
    parser.add_argument("--names", type=Path, help="for clusters: names.json, see tools.segment")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    cfg = load_trained_config(args.config_file, args.weights, args.opts)
    kind = model_output(cfg)
    if kind == "semantic":
        return segment.main(_segment_words(args))
    if kind != "instances":
        raise ValueError(
            f"{args.config_file} trains {cfg.MODEL.META_ARCHITECTURE}, which predicts {kind or 'nothing known'}: "
            "give a model that was trained to segment or detect"
        )
    if args.names:
        raise ValueError(f"--names {args.names} is for clusters, but this model has classes")
    threshold = 0.5 if args.threshold is None else args.threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold} must lie between 0 and 1")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    predictor = build_predictor(cfg)
    source = ImageSource(*args.input, every=args.every, white_level=cfg.INPUT.WHITE_LEVEL)
    source.refuse_output(args.output, ["overlays"])
    files = ["counts.csv", "coco_results.json", "images.json"]
    lock = segment.clear(args.output, ".predict", files, ["overlays"])  # noqa: F841 held until this function ends
    found = predict_instances(predictor, source, args.output, class_names(cfg))
    where, most = printable(str(args.output)), cfg.TEST.DETECTIONS_PER_IMAGE
    print(f"{sum(found)} objects with a score of at least {threshold:g} in {len(found)} images: {where}")
    if full := sum(number >= most for number in found):
        print(
            f"{full} images have as many objects as TEST.DETECTIONS_PER_IMAGE {most} allows, and may show more: append "
            f"TEST.DETECTIONS_PER_IMAGE {10 * most}"
        )
    for line in source.left_out():
        print(line)
    return 0


def _segment_words(args: argparse.Namespace) -> list[str]:
    """Return the command line of tools.segment with the same meaning."""
    given = {
        "--config-file": args.config_file,
        "--weights": args.weights,
        "--output": args.output,
        "--threshold": args.threshold,
        "--every": args.every,
        "--names": args.names,
    }
    words = [word for key, value in given.items() if value is not None for word in (key, str(value))]
    return ["--input", *map(str, args.input), *words, *args.opts]


if __name__ == "__main__":
    sys.exit(main())
