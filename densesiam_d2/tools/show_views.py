"""Draw the input of pretraining: each image with its two views, and the points at which the views are compared.

Usage::

    python -m densesiam_d2.tools.show_views --config-file configs/pretrain.yaml --input my_photos --output views.png

Equal colours and numbers mark the same point. Check before a long run that each point lies on the same object in all
three panels.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image

from densesiam_d2.config_checks import check_config
from densesiam_d2.data import IMAGE_SUFFIXES, TwoViewDatasetMapper, check_datasets, read_image, register_path_datasets
from densesiam_d2.engine.setup import load_config
from densesiam_d2.modeling import trains_on_views
from densesiam_d2.reporting.view_drawing import draw_views

__all__ = ["find_records", "main"]

MAX_GRID = 8  # points per side; more would hide the picture


def main(args: list[str] | None = None) -> None:
    """Draw some images of a config's training set, or of a folder, into one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a pretraining run")
    parser.add_argument("--input", help="a folder of images; by default DATASETS.TRAIN of the config")
    parser.add_argument("--output", required=True, help="the picture to write, such as views.png")
    parser.add_argument("--num", type=int, default=4, help="number of images, evenly spaced among all (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views (default 0)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="changes of the config, as KEY VALUE pairs")
    arguments = parser.parse_args(args)
    if arguments.num < 1:
        parser.error(f"--num {arguments.num} is not a number of images")

    try:
        _draw(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"show_views: {error}")


def _draw(arguments: argparse.Namespace) -> None:
    if Path(arguments.output).suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--output {arguments.output} must end like an image, such as views.png")
    cfg = load_config(arguments.config_file, arguments.opts)
    if not trains_on_views(cfg):
        raise ValueError(f"{arguments.config_file} trains {cfg.MODEL.META_ARCHITECTURE} on whole images, not on views")
    seed_all_rng(arguments.seed)
    records = find_records(cfg, arguments.input)
    check_config(cfg)
    chosen = records[:: max(1, len(records) // arguments.num)][: arguments.num]
    mapper = TwoViewDatasetMapper(cfg)
    mapper.color_on_device = False  # the picture shows the colours that the model sees
    rows = [_draw_record(mapper, record, cfg.MODEL.DENSESIAM.GRID_SIZE) for record in chosen]
    Image.fromarray(np.vstack(rows)).save(arguments.output)
    print(f"{len(rows)} of {len(records)} images drawn in {arguments.output}")


def find_records(cfg: CfgNode, folder: str | None) -> list[dict]:
    """Return the records ("file_name", perhaps "file_part") of the images of a folder, or of DATASETS.TRAIN if None.

    Raises:
        ValueError: DATASETS.TRAIN is empty, or a data set cannot be used.
    """
    if folder is not None:
        cfg.DATASETS.TRAIN = (f"folder:{Path(folder).absolute()}",)
    cfg.DATASETS.TEST = ()
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a folder by --input")
    check_datasets(cfg)
    register_path_datasets(cfg.DATASETS.TRAIN)
    return [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]


def _draw_record(mapper: TwoViewDatasetMapper, record: dict, grid_size: int) -> np.ndarray:
    image = read_image(record["file_name"], record.get("file_part"), mapper.white_level)
    out = mapper.make_views(image)
    return draw_views(image, out["views"], out["view_boxes"], min(grid_size, MAX_GRID))


if __name__ == "__main__":
    main()
