r"""Score the features of a backbone without training it: minutes on two CPU cores.

    python -m densesiam_d2.tools.probe --config-file configs/pretrain_R18.yaml --weights random output/backbone.pkl \
        --train camvid_train --test camvid_test --output probe.json
    python -m densesiam_d2.tools.probe ... --probes ridge linear retrieval --labels 10 50 --seeds 5

The backbone is frozen. --probes names what is fitted on its features:

- ridge (the default): two classifiers in one pass over the training images. Ridge regression to the classes of the
  feature cells, with lambda (10^-2 to 10^4) chosen on a tenth of the training images (at least five, or half of them),
  is a linear probe in closed form, without schedule or learning rate. The other is the vote of the k nearest cells, by
  cosine, in a random sample of the training cells. The class of a cell is the most frequent one of its pixels; cells
  with mostly ignored pixels are left out. Features are standardised on the training cells. Scores are counted at the
  size of the labels.
- linear: a linear head, trained by SGD on random crops: 25 epochs (--epochs), learning rate 0.1, 60 images a step or,
  for small sets, fewer. It is the probe of Leopart, whose published results have res5 alone and 448 pixels (--features
  res5 --size 448 MODEL.RESNETS.RES5_DILATION 2; probe/linear.py says what still differs); scores are counted at
  100 x 100 pixels. Each epoch computes all features again, so it takes about 25 times as long as ridge.
- retrieval: the label of a cell is that of its 30 nearest cells in a memory of --memory-cells training cells, weighted
  by their cosine. Nothing is trained. It is the in-context probe of Hummingbird, published with --size 512 and memories
  of 102,400 cells and more; scores are counted at that size, without matching. A fine stride has many cells to look
  up: 102,400 cells of 896 channels take 370 MB, and each test image some seconds on two CPU cores.

Features are resized to the finest of them and concatenated. linear and retrieval resize images to squares; ridge keeps
their aspect ratio. --labels N adds the same probes fitted on N random training images only, --seeds times: with SEED,
SEED + 1, and so on; with one seed, the smaller sets are part of the larger ones.

Datasets are named as in DATASETS.TRAIN: camvid_train, masks:IMAGES,labels=DIR[,classes=FILE],
coco:FILE.json[,images=DIR], both also with ,subset=N,seed=S. Instances are scored as two classes: background and any
object. Two runs give equal numbers; SEED (default 0) determines the random network and the samples.

The output is JSON: "command", "seed", "train", "test" ("name", "images"), "classes", "features", "size", and "results",
for each weights file "channels", "stride", "ridge" ("mIoU", "pACC", "IoU", "lambda", "held_out"), "knn" (k:
scores), "cells", "knn_cells", "seconds", "linear" (scores, "steps", "seconds"), "retrieval" (scores, "cells",
"seconds"), and "low_data": N: seed: the same content.

Exit status: 0, or 2 for wrong usage, data or weights.
"""

import argparse
import itertools
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch.utils.data import Subset

from densesiam_d2.config_checks import check_values
from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.engine.setup import load_config
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.labels.subset import subset_of
from densesiam_d2.probe.features import FrozenFeatures, build_features
from densesiam_d2.probe.linear import EPOCHS, probe_linear
from densesiam_d2.probe.passes import Images
from densesiam_d2.probe.retrieval import cells_per_crop, probe_retrieval
from densesiam_d2.probe.run import probe
from densesiam_d2.probe.truth import labelled_pair
from densesiam_d2.tools.command_line import check_output_file, tool

__all__ = ["main"]

RANDOM = "random"


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "densesiam_d2.tools.probe", *(sys.argv[1:] if argv is None else argv)])
    for report in _probe_all(args):
        if args.output:
            write_json(args.output, {"command": command, **report})


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
    parser.add_argument(
        "--probes",
        nargs="+",
        choices=("ridge", "linear", "retrieval"),
        default=["ridge"],
        help="what is fitted on the features (default ridge, which includes the nearest neighbours of --knn)",
    )
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="passes of the linear head over the images (default %(default)s)"
    )
    parser.add_argument(
        "--memory-cells", type=int, default=102400, help="training cells to retrieve from (default %(default)s)"
    )
    parser.add_argument(
        "--labels", nargs="*", type=int, default=[], metavar="N", help="fit on N random training images, too"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="how often the images of --labels are drawn (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write all numbers here")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys and values, after an option that takes one value"
    )
    return parser


def _probe_all(args: argparse.Namespace) -> Iterator[dict]:
    """Run the probes, and print a table at the end; after each weight file comes what the output file holds then."""
    if "" in args.weights:
        raise ValueError("--weights '' is empty: name a file, or random")
    _check(args)
    cfg = load_config(args.config_file, args.opts)
    check_values(cfg)
    seed = max(cfg.SEED, 0)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (args.train,), (args.test,)
    check_datasets(cfg)
    ensure_cityscapes_api([args.train, args.test])
    train, test = labelled_pair(args.train, args.test, white_level=cfg.INPUT.WHITE_LEVEL)
    few = [n for n in args.labels if not 2 <= n < len(train)]
    if few:
        raise ValueError(f"--labels {few[0]}: it must be 2 or more, and less than the {len(train)} images of --train")
    if "retrieval" in args.probes:
        cells_per_crop(args.memory_cells, len(train))
    # All networks are built first, so that wrong weights stop the run at once.
    networks = {w: _build(cfg, args, w, seed) for w in args.weights}
    results = {}
    for weights, features in networks.items():
        result = _probe(args, features, train, test, train.classes, seed)
        results[weights] = {"channels": features.channels, "stride": features.stride, **result}
        low_data = {str(n): {} for n in sorted(set(args.labels))}
        for number, s in itertools.product(low_data, range(seed, seed + args.seeds)):
            part = Subset(train, subset_of(len(train), int(number), s))
            low_data[number][str(s)] = _probe(args, features, part, test, train.classes, s)
        if low_data:
            results[weights]["low_data"] = low_data
        yield {
            "seed": seed,
            "train": {"name": args.train, "images": len(train)},
            "test": {"name": args.test, "images": len(test)},
            "classes": train.classes,
            "features": args.features,
            "size": args.size,
            "results": results,
        }
    _print_table(results, len(train), len(train.classes))


def _probe(
    args: argparse.Namespace,
    features: FrozenFeatures,
    train: Images,
    test: Images,
    classes: Sequence[str],
    seed: int,
) -> dict:
    """Return the results of all chosen probes."""
    result = {}
    if "ridge" in args.probes:
        result = probe(features, train, test, classes, ks=args.knn, knn_cells=args.knn_cells, seed=seed)
    if "linear" in args.probes:
        result["linear"] = probe_linear(features, train, test, classes, epochs=args.epochs, seed=seed)
    if "retrieval" in args.probes:
        cells = args.memory_cells
        result["retrieval"] = probe_retrieval(features, train, test, classes, memory_cells=cells, seed=seed)
    return result


def _check(args: argparse.Namespace) -> None:
    """Check numbers and files before anything is read."""
    if any(k < 1 for k in args.knn) or args.knn_cells < max(args.knn, default=0):
        raise ValueError(f"--knn {args.knn} must be positive, and not above --knn-cells {args.knn_cells}")
    for name in ("knn", "weights"):
        twice = [value for value, number in Counter(vars(args)[name]).items() if number > 1]
        if twice:
            raise ValueError(f"--{name} names {twice[0]} twice")
    for name in ("epochs", "seeds"):
        if vars(args)[name] < 1:
            raise ValueError(f"--{name} {vars(args)[name]} must be positive")
    if args.output:
        check_output_file("--output", args.output)


def _build(cfg: CfgNode, args: argparse.Namespace, weights: str, seed: int):
    return build_features(cfg, args.features, weights="" if weights == RANDOM else weights, size=args.size, seed=seed)


def _print_table(results: Mapping[str, dict], num_images: int, num_classes: int) -> None:
    """Print mIoU for each weights file and number of images; over several seeds, mean and standard deviation."""
    rows = [(weights, str(num_images), [result]) for weights, result in results.items()]
    for weights, result in results.items():
        rows += [(weights, number, list(drawn.values())) for number, drawn in result.get("low_data", {}).items()]
    cells = [["mIoU in percent", "images", *_mious(rows[0][2][0])]]
    cells += [[weights, number, *_columns([_mious(result) for result in drawn])] for weights, number, drawn in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        print(first.ljust(widths[0]), *map(str.rjust, others, widths[1:]), sep="  ")
    print(f"{num_classes} classes")


def _mious(result: Mapping[str, dict]) -> dict[str, float]:
    """Return the mIoU of each probe by its name."""
    named = {"ridge": result.get("ridge"), **{f"{k}-NN": scored for k, scored in result.get("knn", {}).items()}}
    named |= {name: result.get(name) for name in ("linear", "retrieval")}
    return {name: scored["mIoU"] for name, scored in named.items() if scored}


def _columns(mious: Sequence[dict[str, float]]) -> list[str]:
    columns = [[by_probe[name] for by_probe in mious] for name in mious[0]]
    if len(mious) == 1:
        return [f"{miou:.1f}" for (miou,) in columns]
    return [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in columns]


if __name__ == "__main__":
    sys.exit(main())
