"""Score the features of a backbone without training it: minutes on two CPU cores.

    python -m densesiam_d2.tools.probe --config-file configs/pretrain_R18.yaml --weights random output/backbone.pkl \
        --train camvid_train --test camvid_test --output probe.json

The backbone is frozen. Two classifiers are fitted on its features in one pass over the training images:

- ridge regression to the classes of the feature cells, with lambda (10^-2 to 10^4) chosen on a tenth of the training
  images (at least five, or half of them): a linear probe in closed form, without schedule or learning rate,
- the vote of the k nearest cells, by cosine, in a random sample of the training cells.

The class of a cell is the most frequent one of its pixels; cells with mostly ignored pixels are left out. Features are
resized to the finest of them, concatenated, and standardised on the training cells. On test images the scores of the
cells are resized bilinearly to the size of the labels and evaluated at all pixels that are not ignored.

Datasets are named as in DATASETS.TRAIN: camvid_train, masks:IMAGES,labels=DIR[,classes=FILE],
coco:FILE.json[,images=DIR], both also with ,subset=N,seed=S. Instances are scored as two classes: background and any
object. Two runs give equal numbers; SEED (default 0) determines the random network and the samples.

The output is JSON: "command", "seed", "train", "test" ("name", "images"), "classes", "features", "size", and "results",
for each weights file "channels", "stride", "ridge" ("mIoU", "pACC", "IoU", "lambda", "held_out"), "knn" (k:
scores), "cells", "knn_cells", "seconds".

Exit status: 0, or 2 for wrong usage, data or weights.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.engine.setup import load_config, replace_sync_bn
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.probe.features import build_features
from densesiam_d2.probe.run import probe
from densesiam_d2.probe.truth import LabelledImages

__all__ = ["main"]

RANDOM = "random"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "densesiam_d2.tools.probe", *(sys.argv[1:] if argv is None else argv)])
    try:
        report = _probe_all(args)
        if args.output:
            write_json(args.output, {"command": command, **report})
    except (ValueError, OSError, ImportError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="yaml with the backbone, such as configs/pretrain.yaml")
    parser.add_argument(
        "--weights", nargs="+", required=True, metavar="W", help="as MODEL.WEIGHTS; 'random' for a random network"
    )
    parser.add_argument("--train", required=True, metavar="SET", help="dataset to fit on")
    parser.add_argument("--test", required=True, metavar="SET", help="dataset to score on")
    parser.add_argument(
        "--features", nargs="+", default=["res3", "res4", "res5"], help="outputs of the backbone (default res3 to res5)"
    )
    parser.add_argument(
        "--size", type=int, default=320, help="short side of the network's input in pixels (default %(default)s)"
    )
    parser.add_argument(
        "--knn", nargs="*", type=int, default=[1, 10, 30], metavar="K", help="numbers of neighbours (default 1 10 30)"
    )
    parser.add_argument(
        "--knn-cells", type=int, default=10000, help="training cells that can be neighbours (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write all numbers here")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys and values, after an option that takes one value"
    )
    return parser


def _probe_all(args: argparse.Namespace) -> dict:
    """Run the probes, print a table, and return the content of the output file."""
    _check(args)
    cfg = load_config(args.config_file, args.opts)
    replace_sync_bn(cfg)
    seed = max(cfg.SEED, 0)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (args.train,), (args.test,)
    check_datasets(cfg)
    ensure_cityscapes_api([args.train, args.test])
    train, test = (LabelledImages(name, white_level=cfg.INPUT.WHITE_LEVEL) for name in (args.train, args.test))
    if train.classes != test.classes:
        raise ValueError(
            f"--train has the classes {', '.join(train.classes)}, --test {', '.join(test.classes)}: they must be equal"
        )
    # All networks are built first, so that wrong weights stop the run at once.
    networks = {w: _build(cfg, args, w, seed) for w in args.weights}
    results = {}
    for weights, features in networks.items():
        result = probe(features, train, test, train.classes, ks=args.knn, knn_cells=args.knn_cells, seed=seed)
        results[weights] = {"channels": features.channels, "stride": features.stride, **result}
    _print_table(results, len(train.classes))
    return {
        "seed": seed,
        "train": {"name": args.train, "images": len(train)},
        "test": {"name": args.test, "images": len(test)},
        "classes": train.classes,
        "features": args.features,
        "size": args.size,
        "results": results,
    }


def _check(args: argparse.Namespace) -> None:
    """Check numbers and files before anything is read."""
    if any(k < 1 for k in args.knn) or args.knn_cells < max(args.knn, default=0):
        raise ValueError(f"--knn {args.knn} must be positive, and not above --knn-cells {args.knn_cells}")
    twice = sorted({w for w in args.weights if args.weights.count(w) > 1})
    if twice:
        raise ValueError(f"--weights names {twice[0]} twice")
    if args.output and (args.output.is_dir() or not os.access(args.output.absolute().parent, os.W_OK)):
        raise ValueError(f"--output {args.output} cannot be written: name a file in a folder that exists")


def _build(cfg: CfgNode, args: argparse.Namespace, weights: str, seed: int):
    return build_features(cfg, args.features, weights="" if weights == RANDOM else weights, size=args.size, seed=seed)


def _print_table(results: Mapping[str, dict], num_classes: int) -> None:
    last = next(iter(results.values()))
    width = max(15, *map(len, results))
    print(f"{'mIoU in percent':<{width}}   ridge  lambda", *(f"{f'{k}-NN':>6}" for k in last["knn"]), sep="  ")
    for weights, result in results.items():
        numbers = (f"{scored['mIoU']:6.1f}" for scored in result["knn"].values())
        print(f"{weights:<{width}}  {result['ridge']['mIoU']:6.1f}  {result['ridge']['lambda']:6g}", *numbers, sep="  ")
    print(f"{num_classes} classes, {last['cells']} training cells, {last['knn_cells']} of them as neighbours")


if __name__ == "__main__":
    sys.exit(main())
