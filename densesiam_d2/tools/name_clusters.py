"""Name the clusters of a label-free model by a few labelled images, as a person would in the gallery.

    python -m densesiam_d2.tools.name_clusters --config-file F --weights W --name-from camvid_train --num 10 --output O

Each cluster gets the class that most of its pixels have in these images; a cluster that does not occur in them gets no
name. The file is the ``names.json`` that ``tools.segment --names`` reads and ``gallery.html`` loads.

``--num 10`` draws the images that ``masks:...,subset=10`` draws from the same folders, with the seed 0 unless
``--seed`` says otherwise. So a supervised model can be trained on the images that named the clusters.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine.segmentor import Segmentor
from densesiam_d2.engine.setup import load_trained_config
from densesiam_d2.evaluation.confusion import confusion_matrix
from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.cluster_names import ClusterNames, file_sha256, majority_names
from densesiam_d2.labels.subset import subset_of
from densesiam_d2.probe.truth import LabelledImages
from densesiam_d2.tools.command_line import check_output_file, tool
from densesiam_d2.tools.segment import known_classes

__all__ = ["count_classes", "main"]


def count_classes(segmentor: Segmentor, labelled: LabelledImages, indices: Iterable[int]) -> np.ndarray:
    """Return (C, K) pixels of each class in each cluster, over some labelled images."""
    counts = np.zeros((len(labelled.classes), segmentor.num_classes), np.int64)
    for index in indices:
        image, labels = labelled[index]
        counts += confusion_matrix(labels, segmentor(image), *counts.shape, IGNORE, name=f"image {index}")
    return counts


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the yaml that the checkpoint was trained with")
    parser.add_argument("--weights", required=True, help="checkpoint of a label-free model, such as model_final.pth")
    parser.add_argument(
        "--name-from", required=True, metavar="DATASET", help="masks:IMAGES,labels=DIR, or the name of a labelled set"
    )
    parser.add_argument("--num", type=int, help="number of images to draw (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default 0)")
    parser.add_argument("--output", required=True, type=Path, help="the file to write, such as names.json")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    _run(args)


def _run(args: argparse.Namespace) -> None:
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be at least 0")
    check_output_file("--output", args.output)
    cfg = load_trained_config(args.config_file, args.weights, args.opts)
    classes = known_classes(cfg)
    if classes:
        raise ValueError(f"--weights {args.weights} is of a model with classes, not clusters: {', '.join(classes[0])}")
    register_path_datasets([args.name_from])
    if args.name_from not in DatasetCatalog:
        raise ValueError(f"--name-from {args.name_from} is not a data set; masks:IMAGES,labels=DIR names your own")
    segmentor = Segmentor(cfg)
    labelled = LabelledImages(args.name_from, white_level=segmentor.white_level)
    if args.num is not None and not 1 <= args.num <= len(labelled):
        raise ValueError(f"--num {args.num} must lie between 1 and the {len(labelled)} images with labels")
    indices = range(len(labelled)) if args.num is None else subset_of(len(labelled), args.num, args.seed)
    counts = count_classes(segmentor, labelled, tqdm(indices, unit=" images", disable=None))
    names = majority_names(counts, labelled.classes)
    ClusterNames(names, file_sha256(args.weights)).write(args.output)
    unnamed = names.count(None)
    print(f"{len(names) - unnamed} of {len(names)} clusters named by {len(indices)} images, in {args.output}")
    for name in labelled.classes:
        print(f"  {name}: {', '.join(str(i) for i, n in enumerate(names) if n == name) or 'no cluster'}")


if __name__ == "__main__":
    sys.exit(main())
