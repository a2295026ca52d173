"""Segment images or a video, and turn the clusters of label-free segmentation into labels.

    python -m densesiam_d2.tools.segment --config-file F --weights W --input I --output O

I is a folder (links are followed, hidden files are left out), one or more images, a list (``.txt``, one image a line),
or a video (``--every 10`` takes every tenth frame; frame 120 of ``clip.mp4`` is called ``clip/000120``). Written for
every image, under its own relative name:

- ``labels/*.png``: the id of each pixel (8 bit; 16 bit for more than 256 ids), at the image's size; with
  ``--threshold T`` pixels whose largest probability is below T have no id (255),
- ``overlays/*.jpg``: the image with the colours of the ids over it; an id has the same colour in every run,

and for all images ``legend.png``, ``classes.json`` (name, colour and share of each id), ``classes.txt`` (the names),
``counts.csv`` (for each image the pixels of each id, and its connected regions of at least ``--min-area`` pixels), and
``gallery.html``: for each id its most typical regions, its share, and the ids that are nearest to it.

The ids of a label-free model are clusters. Open ``gallery.html`` in a browser, type a name for each cluster, and save
``names.json``. Clusters that share a name become one class; "ignore" and clusters without a name become 255. Then

    python -m densesiam_d2.tools.segment --config-file F --weights W --input I --output O --names names.json

writes the same files for the classes, whose ids follow from their names in sorted order, and ``annotations.json``: the
connected regions of at least ``--min-area`` pixels in COCO's format, to be corrected in a labelling tool. The frames of
a video are written to ``images/``. ``DATASETS.TRAIN "('masks:I,labels=O/labels',)"`` trains on the result (for a video
``clip.mp4``, ``masks:O/images/clip,labels=O/labels/clip,classes=O/classes.txt``). A model that was trained on labels
has class names and writes all this at once.

Exit status: 0, also if some files could not be read; 2 for wrong usage or weights, or if none could; 75 when stopped.
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from tqdm import tqdm

from densesiam_d2.data.image_sources import ImageSource
from densesiam_d2.engine.run_lock import InUseError, lock_file
from densesiam_d2.engine.segmentor import Segmentor
from densesiam_d2.engine.setup import load_trained_config
from densesiam_d2.image_io import JPEG_SIDE
from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.cluster_names import ClusterNames, file_sha256
from densesiam_d2.labels.counts import CountsWriter
from densesiam_d2.labels.regions import CocoWriter, count_regions
from densesiam_d2.modeling import num_label_ids
from densesiam_d2.reporting.gallery import Gallery
from densesiam_d2.reporting.gallery_page import write_gallery
from densesiam_d2.reporting.label_colors import overlay, palette
from densesiam_d2.reporting.text import put_text, text_width
from densesiam_d2.text_lines import printable
from densesiam_d2.tools.command_line import tool

__all__ = ["clear", "draw_legend", "known_classes", "main", "output_stem", "segment_images", "write_image"]


def draw_legend(names: list[str], colors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Draw the ids that occur, most frequent first.

    Args:
        names: of the ids.
        colors: (num, 3) uint8 RGB.
        shares: (num,) share of all pixels.

    Returns:
        (rows * 28 + 8, W, 3) uint8 RGB; W is 420, or more for long names.
    """
    used = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    texts = [f"{i}  {names[i]}" for i in used]
    right = max(345, 60 + max(map(text_width, texts), default=0))
    canvas = np.full((28 * len(used) + 8, right + 75, 3), 255, np.uint8)
    for row, i in enumerate(used):
        y = 28 * row + 6
        cv2.rectangle(canvas, (8, y), (40, y + 22), [int(c) for c in colors[i]], cv2.FILLED)
        put_text(canvas, texts[row], (50, y + 4))
        put_text(canvas, f"{100 * shares[i]:5.1f} %", (right, y + 4))
    return canvas


def segment_images(
    segmentor: Segmentor,
    source: ImageSource,
    output: Path,
    names: list[str],
    colors: np.ndarray,
    *,
    alpha: float = 0.5,
    table: np.ndarray | None = None,
    coco: CocoWriter | None = None,
    threshold: float = 0.0,
    min_area: int = 100,
) -> tuple[Gallery, float, int]:
    """Segment all images and write the files that the module's docstring lists, except for the gallery's page.

    Args:
        segmentor: the model, with certainties.
        source: the images.
        output: folder to write to.
        names: of the ids in the label maps.
        colors: (num, 3) uint8 RGB, of these ids.
        alpha: weight of the colours in the overlays.
        table: (K,) uint8, the id of each of the model's clusters; None if they are the ids.
        coco: gets the regions of the label maps, if given.
        threshold: pixels whose largest probability is lower get the id 255, which stands for none.
        min_area: connected regions with fewer pixels are not counted in ``counts.csv``.

    Returns:
        The gallery of the model's clusters or classes, the seconds per image (network, argmax and softmax), and the
        number of images whose name differs from another one by its ending alone.

    Raises:
        FileNotFoundError: the source has no readable image.
    """
    gallery, written, seconds, num_twins = Gallery(segmentor.num_classes), set(), 0.0, 0
    pixels = np.zeros(max(len(names), IGNORE + 1), np.int64)
    with CountsWriter(output / "counts.csv", names) as counts:
        for name, image in tqdm(source, total=source.total, unit=" images", disable=None):  # no bar in a log file
            start = time.perf_counter()
            found = segmentor.with_certainty(image)
            seconds += time.perf_counter() - start
            gallery.add(name, image, *found)
            labels = found.labels if table is None else table[found.labels]
            if threshold > 0:
                labels = np.where(found.certainty < threshold, labels.dtype.type(IGNORE), labels)
            of_image = np.bincount(labels.ravel(), minlength=len(pixels))
            pixels += of_image
            num_regions = count_regions(labels, len(names), min_area)
            counts.add(name.as_posix(), labels.shape, num_regions, of_image[: len(names)].tolist())
            stem = output_stem(name, written)
            num_twins += stem != name.with_suffix("")
            write_image(output / "labels" / f"{stem}.png", labels)
            write_image(output / "overlays" / f"{stem}.jpg", overlay(image, labels, alpha, colors)[:, :, ::-1])
            if coco is not None:
                coco.add(name.as_posix(), labels, found.certainty)
                if source.root is None:
                    write_image(output / "images" / name, image[:, :, ::-1])
    shares = pixels[: len(names)] / pixels.sum()
    write_image(output / "legend.png", draw_legend(names, colors, shares)[:, :, ::-1])
    classes = [
        {"id": i, "name": name, "color": color, "share": float(share)}
        for i, (name, color, share) in enumerate(zip(names, colors.tolist(), shares, strict=True))
    ]
    (output / "classes.json").write_text(json.dumps(classes, indent=1))
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return gallery, seconds / len(written), num_twins


def output_stem(name: Path, written: set[Path]) -> Path:
    """Return the name of an image's results without an ending, and add it to those that are taken (a.jpg, a.png)."""
    stem = name.with_suffix("")
    if stem in written:
        stem = name
    while stem in written:  # of a.png.tif
        stem = stem.with_name(f"{stem.name}_")
    written.add(stem)
    return stem


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, BGR as in OpenCV; missing folders are created. A JPEG is made smaller if the format requires it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = JPEG_SIDE / max(image.shape[:2])
    if path.suffix == ".jpg" and scale < 1:
        size = [min(JPEG_SIDE, max(1, round(side * scale))) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    path.write_bytes(cv2.imencode(path.suffix, image)[1])  # cv2.imwrite crashes on names that are not UTF-8


def known_classes(cfg: CfgNode) -> tuple[list[str], np.ndarray] | None:
    """Return name and RGB colour of each class of a supervised model; None if they are not known, as for clusters."""
    num, metadata = num_label_ids(cfg), Metadata()
    if cfg.TEST.SEM_SEG_MATCHING != "none":
        return None
    if cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    own = metadata.get("stuff_classes", [])
    classes = list(cfg.MODEL.CLASS_NAMES or own)
    if len(classes) != num:
        return None
    return classes, np.array(metadata.get("stuff_colors", palette(num)) if classes == own else palette(num), np.uint8)


def _matched(path: str, num: int) -> tuple[str | None, ...]:
    """Return the class of each cluster, as an evaluation with TEST.SEM_SEG_MATCHING has matched them."""
    try:
        matched = json.loads(Path(path).read_text(encoding="utf-8"))["cluster_to_class"]
        right = isinstance(matched, list) and all(name is None or isinstance(name, str) for name in matched)
    except OSError as error:
        raise ValueError(f"--matching {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        right = False
    if not right or len(matched) != num:
        raise ValueError(f"--matching {path}: no list 'cluster_to_class' of {num} names (null for none) in it")
    return tuple(matched)


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        required=True,
        help="the yaml that the checkpoint was trained with; config.yaml of its OUTPUT_DIR has the class names too",
    )
    parser.add_argument("--weights", required=True, help="segmentation checkpoint, such as model_final.pth")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        type=Path,
        help="folder with images, one or more images, a list of them (.txt), or a video",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--every", type=int, help="of a video, segment every n-th frame (default: all)")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours in the overlays, 0 to 1")
    parser.add_argument("--names", type=Path, help="names.json of gallery.html: write classes instead of clusters")
    parser.add_argument(
        "--min-area",
        type=int,
        default=100,
        help="smallest region in annotations.json and counts.csv, in pixels (default 100)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="pixels whose largest probability is lower get no id (default 0)"
    )
    parser.add_argument(
        "--matching", help="sem_seg_evaluation.json of an evaluation with TEST.SEM_SEG_MATCHING, to name the clusters"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    _run(args)


def _run(args: argparse.Namespace) -> None:
    cfg = load_trained_config(args.config_file, args.weights, args.opts)
    if not 0 <= args.alpha <= 1:
        raise ValueError(f"--alpha {args.alpha} must lie between 0 and 1")
    if not 0 <= args.threshold < 1:
        raise ValueError(f"--threshold {args.threshold} must be at least 0 and below 1")
    if args.min_area < 1:
        raise ValueError(f"--min-area {args.min_area} must be at least 1")
    num, classes, table = num_label_ids(cfg), known_classes(cfg), None
    given = [f"--{key} {path}" for key, path in (("names", args.names), ("matching", args.matching)) if path]
    if classes and given:
        raise ValueError(f"{given[0]} is for clusters, but this model has classes: {', '.join(classes[0])}")
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both name the clusters: give one of them")
    segmentor = Segmentor(cfg, certainty=True)
    source = ImageSource(*args.input, every=args.every, white_level=segmentor.white_level)
    folders = ["labels", "overlays"] + ([f"images/{args.input[0].stem}"] if source.root is None else [])  # of a video
    source.refuse_output(args.output, folders)

    typed, sha256 = (None,) * num, None if classes else file_sha256(args.weights)
    if args.matching:
        typed = _matched(args.matching, num)
    if args.names:
        named = ClusterNames.read(args.names, sha256, num)
        typed, table, classes = named.names, named.table, (named.classes, palette(len(named.classes)))
    names, colors = classes or ([f"cluster {i}" for i in range(num)], palette(num))
    if args.threshold and len(names) > IGNORE:
        raise ValueError(f"--threshold marks pixels by the id {IGNORE}, but this model has {len(names)} ids")
    if args.matching and not classes:
        names = [f"{name} = {typed[i] or 'no class'}" for i, name in enumerate(names)]

    files = ["classes.json", "classes.txt", "annotations.json"]  # first, because they give the ids their meaning
    files += ["counts.csv", "gallery.html", "legend.png"]
    lock = clear(args.output, ".segment", files, folders)  # noqa: F841 held until this function ends
    annotations = args.output / "annotations.json"
    with CocoWriter(annotations, names, args.min_area) if classes else contextlib.nullcontext() as coco:
        settings = {"alpha": args.alpha, "threshold": args.threshold, "min_area": args.min_area}
        gallery, seconds, num_twins = segment_images(
            segmentor, source, args.output, names, colors, table=table, coco=coco, **settings
        )
    page, title = args.output / "gallery.html", args.input[0].resolve().name
    if sha256 is None:
        write_gallery(page, gallery, names, colors, source=title)
    else:
        checkpoint = Path(args.weights).name
        write_gallery(page, gallery, typed, palette(num), source=title, checkpoint=checkpoint, sha256=sha256)
    print(printable(f"{gallery.num_images} images, {seconds:.3f} s each, results in {args.output}"))
    if coco is not None:
        print(f"{coco.num_annotations} regions in annotations.json; {_training_line(args, source, num_twins)}")
    if table is not None and (table == IGNORE).any():
        left_out = gallery.shares[table == IGNORE].sum()
        print(f"{(table == IGNORE).sum()} clusters are ignored or have no name: {100 * left_out:.1f} % of the pixels")
    for line in source.left_out():
        print(line)


def clear(output: Path, marker: str, files: Sequence[str], folders: Sequence[str]) -> TextIO:
    """Remove what an earlier run has written, whose ids and images may be others, and lock the folder.

    Args:
        output: the folder of the results.
        marker: name of the file that marks the folder as the tool's. It is written first, so that a run that was
            stopped can be repeated.
        files, folders: names of what is removed.

    Returns:
        The open marker; the folder is locked for other processes until it is closed.

    Raises:
        ValueError: the folder has files of these names that this tool has not written, or another process uses it.
    """
    files, folders, marker = [output / n for n in files], [output / n for n in folders], output / marker
    found = [path.name for path in (*files, *folders) if path.exists()]
    if found and not marker.exists():
        raise ValueError(f"--output {output} has {', '.join(found)}, not written by this tool: name another folder")
    try:
        lock = lock_file(marker)
    except InUseError as error:
        raise ValueError(f"--output {output} is in use by {error}: wait for it, or name another folder") from None
    for file in files:
        file.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return lock


def _training_line(args: argparse.Namespace, source: ImageSource, num_twins: int) -> str:
    """Return how to train on the label maps, or why that cannot be done yet."""
    if num_twins:
        return (
            f"{num_twins} images have the name of another one but for the ending: rename them and run this again to "
            "train on the label maps"
        )
    name = f"masks:{source.root},labels={args.output / 'labels'}"
    if source.root is None:  # a folder may hold the frames of several videos
        images, labels = (args.output / kind / args.input[0].stem for kind in ("images", "labels"))
        name = f"masks:{images},labels={labels},classes={args.output / 'classes.txt'}"
    return "to train on the label maps:\n" + printable(f"  DATASETS.TRAIN \"('{name}',)\"")


if __name__ == "__main__":
    sys.exit(main())
