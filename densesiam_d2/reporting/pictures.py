"""Pictures of the inputs and predictions of models. All images are (H, W, 3) uint8 RGB."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import ColorMode, Visualizer

from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.data.path_datasets import FOLDER_PREFIX, UNLABELLED_PREFIXES, load_records
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper
from densesiam_d2.image_io import UnreadableImageError, read_image, read_label
from densesiam_d2.reporting.label_colors import colorize, overlay, palette
from densesiam_d2.reporting.text import put_text
from densesiam_d2.reporting.view_drawing import MAX_GRID, draw_views

__all__ = [
    "cluster_table",
    "draw_detections",
    "draw_legend",
    "draw_overlays",
    "draw_overview",
    "draw_segmentations",
    "draw_view_pairs",
    "find_records",
    "tile",
]

logger = logging.getLogger(__name__)

_GAP = 6
SegmentFn = Callable[[np.ndarray], np.ndarray]


def tile(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = (), height: int = 200) -> np.ndarray:
    """Arrange pictures in rows, scaled to the same height, with titles over the columns.

    Args:
        rows: pictures; rows may differ in length.
        titles: titles of the columns; they are placed right only if all pictures have the same shape.
        height: height of each picture in pixels.
    """
    lines = []
    for row in rows:
        cells = [
            cv2.resize(p, (round(p.shape[1] * height / p.shape[0]), height), interpolation=cv2.INTER_AREA) for p in row
        ]
        lines.append(np.hstack([np.pad(c, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for c in cells]))
    width = max(line.shape[1] for line in lines)
    lines = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    if titles:
        bar = np.full((26, width, 3), 255, np.uint8)
        for column, title in enumerate(titles):
            put_text(bar, title, (column * (width // len(titles)) + 2, 6))
        lines.insert(0, bar)
    return np.vstack(lines)


def find_records(cfg: CfgNode, folder: str | None = None) -> list[dict]:
    """Return the records ("file_name", perhaps "file_part") of the images of a folder, or of DATASETS.TRAIN if None.

    Args:
        cfg: a config; DATASETS.TEST becomes empty, so that test sets need not exist.
        folder: a folder of images, or a name such as list:/path.txt.

    Raises:
        ValueError: DATASETS.TRAIN is empty, or a data set cannot be used.
    """
    if folder is not None:
        cfg.DATASETS.TRAIN = (folder if folder.startswith(UNLABELLED_PREFIXES) else FOLDER_PREFIX + folder,)
    cfg.DATASETS.TEST = ()
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a folder by --input")
    check_datasets(cfg)
    return load_records(cfg.DATASETS.TRAIN)


def draw_view_pairs(cfg: CfgNode, records: Sequence[dict], seed: int = 0) -> np.ndarray:
    """Draw images with two views, sampled as in pretraining, and the grid points at which the views are compared.

    Args:
        cfg: config of a pretraining.
        records: of the images; those that cannot be read are named in the log and left out.
        seed: seed of the views.

    Raises:
        ValueError: none of the images can be read.
    """
    seed_all_rng(seed)
    mapper = TwoViewDatasetMapper(cfg)
    mapper.color_on_device = False  # the picture shows the colours that the model sees
    rows = []
    for record in records:
        try:
            image = read_image(record["file_name"], record.get("file_part"), mapper.white_level)
        except UnreadableImageError as error:
            logger.warning("%s", error)
            continue
        out = mapper.make_views(image)
        grid = min(cfg.MODEL.DENSESIAM.GRID_SIZE, MAX_GRID)
        rows.append(draw_views(image, out["views"], out["view_boxes"], grid))
    if not rows:
        raise ValueError(f"none of {len(records)} images can be read, such as {records[0]['file_name']}")
    return np.vstack(rows)


def cluster_table(output: Path, classes: Sequence[str]) -> np.ndarray:
    """Return the class id of each cluster, as matched by the evaluation; len(classes) for clusters without a class.

    Args:
        output: OUTPUT_DIR of an evaluated run.
        classes: names of the classes.
    """
    matched = json.loads((output / "inference" / "sem_seg_evaluation.json").read_text())["cluster_to_class"]
    return np.array([len(classes) if name is None else classes.index(name) for name in matched])


def draw_segmentations(dataset: str, indices: Sequence[int], methods: dict[str, SegmentFn]) -> np.ndarray:
    """Draw images with their labels and the segmentation of each method, two images per row.

    Args:
        dataset: name of the dataset.
        indices: numbers of the images in the dataset; there must be an even number of them.
        methods: name -> function from an image to class ids (H, W).
    """
    metadata = MetadataCatalog.get(dataset)
    colors, num = np.array(metadata.stuff_colors, np.uint8), len(metadata.stuff_classes)
    records, cells = DatasetCatalog.get(dataset), []
    for index in indices:
        image = read_image(records[index]["file_name"])
        labels = [read_label(records[index]["sem_seg_file_name"]), *(method(image) for method in methods.values())]
        cells.append([image, *(colorize(ids, num, colors) for ids in labels)])
    rows = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return tile(rows, ["image", "labels", *methods] * 2, height=128)


def draw_overlays(files: Sequence[str], method: SegmentFn, num: int) -> np.ndarray:
    """Draw rows of up to six images, and below each the same images blended with the colours of their clusters.

    Args:
        files: image files.
        method: function from an image to cluster ids (H, W).
        num: number of clusters.
    """
    rows = []
    for start in range(0, len(files), 6):
        images = [read_image(file) for file in files[start : start + 6]]
        rows += [images, [overlay(image, method(image), 0.6, palette(num)) for image in images]]
    return tile(rows, height=150)


def draw_legend(names: Sequence[str], colors: np.ndarray, cell: int = 100) -> np.ndarray:
    """Draw the name of each class beside its colour, in one row; ``cell`` is the width of each in pixels."""
    canvas = np.full((26, cell * len(names), 3), 255, np.uint8)
    for i, (name, color) in enumerate(zip(names, colors.tolist(), strict=True)):
        cv2.rectangle(canvas, (cell * i + 2, 4), (cell * i + 24, 22), color, cv2.FILLED)
        put_text(canvas, name, (cell * i + 30, 6))
    return canvas


def draw_detections(cfgs: Sequence[CfgNode], dataset: str, indices: Sequence[int], threshold: float) -> np.ndarray:
    """Draw images with their labelled instances (first row), and with the predictions of each model (one row each).

    Args:
        cfgs: configs with MODEL.WEIGHTS set to trained weights.
        dataset: name of the dataset.
        indices: numbers of the images in the dataset.
        threshold: predictions with a lower score are not drawn.
    """
    metadata = MetadataCatalog.get(dataset)
    records = [DatasetCatalog.get(dataset)[i] for i in indices]
    images = [read_image(record["file_name"]) for record in records]
    labels = [{"annotations": record["annotations"]} for record in records]  # without the semantic labels
    rows = [[_canvas(i, metadata).draw_dataset_dict(x).get_image() for i, x in zip(images, labels, strict=True)]]
    rows += [_predicted_instances(cfg, images, metadata, threshold) for cfg in cfgs]
    return tile(rows, height=256)


def draw_overview(
    dataset: str,
    index: int,
    methods: dict[str, SegmentFn],
    detectors: dict[str, CfgNode],
    threshold: float,
) -> np.ndarray:
    """Draw an image of a dataset, its label map by each segmentation, and the instances that each detector finds.

    Args:
        dataset: name of the dataset.
        index: number of the image in the dataset.
        methods: name -> function from an image to class ids (H, W).
        detectors: name -> config with MODEL.WEIGHTS set to trained weights.
        threshold: predicted instances with a lower score are not drawn.
    """
    metadata = MetadataCatalog.get(dataset)
    colors = np.array(metadata.stuff_colors, np.uint8)
    image = read_image(DatasetCatalog.get(dataset)[index]["file_name"])
    maps = [colorize(method(image), len(colors), colors) for method in methods.values()]
    found = [_predicted_instances(cfg, [image], metadata, threshold)[0] for cfg in detectors.values()]
    return tile([[image, *maps, *found]], ["image", *methods, *detectors], height=240)


def _predicted_instances(cfg: CfgNode, images: Sequence[np.ndarray], metadata, threshold: float) -> list[np.ndarray]:
    """Return the images with the instances that a detector finds in them."""
    predictor, drawn = DefaultPredictor(cfg), []
    for image in images:
        # The predictor takes BGR images for every value of INPUT.FORMAT.
        instances = predictor(image[..., ::-1])["instances"].to("cpu")
        instances = instances[instances.scores >= threshold]
        drawn.append(_canvas(image, metadata).draw_instance_predictions(instances).get_image())
    return drawn


def _canvas(image: np.ndarray, metadata) -> Visualizer:
    return Visualizer(image, metadata, scale=2.5, instance_mode=ColorMode.SEGMENTATION)
