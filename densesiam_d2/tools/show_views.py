"""Draw the input of pretraining: each image with its two views, and the points at which the views are compared.

Usage::

    python -m densesiam_d2.tools.show_views --config-file configs/pretrain.yaml --input my_photos --output views.png

Equal colours and numbers mark the same point. Check before a long run that each point lies on the same object in all
three panels.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from densesiam_d2.config_checks import check_config
from densesiam_d2.data import IMAGE_SUFFIXES
from densesiam_d2.engine.setup import load_config
from densesiam_d2.labels.subset import evenly_spaced
from densesiam_d2.modeling import trains_on_views
from densesiam_d2.reporting.pictures import draw_view_pairs, find_records
from densesiam_d2.tools.command_line import check_output_file, tool

__all__ = ["main"]


@tool
def main(args: list[str] | None = None) -> None:
    """Draw some images of a config's training set, or of a folder, into one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a pretraining run")
    parser.add_argument("--input", help="a folder, list:FILE or index:DIR; by default DATASETS.TRAIN of the config")
    parser.add_argument("--output", required=True, type=Path, help="the picture to write, such as views.png")
    parser.add_argument("--num", type=int, default=4, help="number of images, evenly spaced among all (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views (default 0)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="changes of the config, as KEY VALUE pairs")
    arguments = parser.parse_args(args)
    if arguments.num < 1:
        parser.error(f"--num {arguments.num} is not a number of images")

    _draw(arguments)


def _draw(arguments: argparse.Namespace) -> None:
    if arguments.output.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--output {arguments.output} must end like an image, such as views.png")
    check_output_file("--output", arguments.output)
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"--seed {arguments.seed} must lie between 0 and 2**32 - 1")
    cfg = load_config(arguments.config_file, arguments.opts)
    if not trains_on_views(cfg):
        raise ValueError(f"{arguments.config_file} trains {cfg.MODEL.META_ARCHITECTURE} on whole images, not on views")
    records = find_records(cfg, arguments.input)
    check_config(cfg)
    chosen = evenly_spaced(records, arguments.num)
    Image.fromarray(draw_view_pairs(cfg, chosen, arguments.seed)).save(arguments.output)
    print(f"{len(chosen)} of {len(records)} images were chosen; the picture is {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
