"""Score label maps that ``tools.segment`` wrote against the labels of a data set.

    python -m densesiam_d2.tools.score_maps --maps O/labels --dataset camvid_test --output scores

The map of an image is below ``--maps`` under the image's name. The classes of the maps are named by ``classes.txt``, in
that folder or beside it, and matched with those of the data set by name. Ignored pixels (255) of a map count as wrong;
any other value that is no class is an error. The labels of the data set are checked as at the start of a run.
Prints the scores of ``SemSegConfusionEvaluator``; with ``--output`` they are in ``sem_seg_evaluation.json`` there.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from densesiam_d2.data.label_checks import LABEL_MAP_KINDS, require_labels
from densesiam_d2.data.label_folders import read_classes
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator
from densesiam_d2.image_io import read_label
from densesiam_d2.labels import IGNORE
from densesiam_d2.tools.command_line import tool

__all__ = ["class_table", "main", "score_maps"]


class _MapEvaluator(SemSegConfusionEvaluator):
    """The same scores for predictions that have one more id, of the pixels without a class, which are always wrong."""

    def reset(self) -> None:
        super().reset()
        self._matrix = np.pad(self._matrix, ((0, 0), (0, 1)))

    def _make_room(self, num_predicted: int) -> None:
        """Do nothing: the maps have the data set's classes."""


def class_table(own: list[str], test: list[str]) -> np.ndarray:
    """Return (256,) uint8: the data set's number of each value of a label map.

    Args:
        own: the classes of the maps.
        test: the C classes of the data set; some may not occur in the maps.

    Returns:
        C for ``IGNORE`` and for values that are no class.

    Raises:
        ValueError: a class of the maps is none of the data set, or the data set has more than 255 classes.
    """
    others = [name for name in own if name not in test]
    if others:
        raise ValueError(
            f"the maps have classes that the data set lacks: {', '.join(others)}; it has {', '.join(test)}"
        )
    if len(test) > IGNORE:
        raise ValueError(f"the data set has {len(test)} classes; 8-bit label maps have {IGNORE} at most")
    table = np.full(256, len(test), np.uint8)
    table[: len(own)] = [test.index(name) for name in own]
    return table


def score_maps(maps: Path, dataset: str, output: Path | None = None) -> dict[str, float]:
    """Score the label maps below a folder.

    Args:
        maps: the folder.
        dataset: name of a registered data set with label maps.
        output: folder for ``sem_seg_evaluation.json``, if any.

    Returns:
        The scores in percent.

    Raises:
        FileNotFoundError: an image has no map.
        LabelsError: the labels of the data set cannot be used.
        ValueError: the classes of the maps are not known or not those of the data set, or a map cannot be read, has
            another size than the labels, or holds a value that is no class.
    """
    metadata = MetadataCatalog.get(dataset)
    require_labels(dataset, semantic=True, masks=False)
    records = DatasetCatalog.get(dataset)  # some data sets set their classes only here
    evaluator = _MapEvaluator(dataset, output_dir=output)
    own = read_classes(maps)
    if own is None:
        raise ValueError(f"--maps {maps}: there is no classes.txt in it or beside it, one name a line")
    table = class_table(own, list(metadata.stuff_classes))
    folders = metadata.get("image_roots") or {str(Path(record["file_name"]).parent) for record in records}
    root = metadata.get("image_root") or os.path.commonpath(folders)  # Cityscapes has a folder a split
    for record in tqdm(records, unit=" maps", disable=None):
        name = Path(record["file_name"]).relative_to(root)
        path = maps / name.with_suffix(".png")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: segment the folder {root}")
        labels = read_label(path)
        found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
        strays = [value for value in found if value >= len(own) and value != IGNORE]
        if strays:
            raise ValueError(
                f"{path} has the values {strays[:5]}; its classes are 0 to {len(own) - 1}, {IGNORE} is none"
            )
        predicted = {"sem_seg_labels": torch.from_numpy(table[labels]), "num_classes": len(metadata.stuff_classes) + 1}
        try:
            evaluator.process([record], [predicted])
        except ValueError as error:
            raise ValueError(f"the map {path} cannot be scored: {error}") from error
    return evaluator.evaluate()["sem_seg"]


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", required=True, type=Path, help="folder of label maps (PNG)")
    parser.add_argument(
        "--dataset", required=True, help="masks:IMAGES,labels=DIR, or the name of a set with label maps"
    )
    parser.add_argument("--output", type=Path, help="folder for sem_seg_evaluation.json")
    args = parser.parse_args(argv)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    register_path_datasets([args.dataset])
    metadata = MetadataCatalog.get(args.dataset)
    with_maps = metadata.get("sem_seg_root") or metadata.get("evaluator_type") in LABEL_MAP_KINDS
    if args.dataset not in DatasetCatalog or not with_maps:
        raise ValueError(f"--dataset {args.dataset} is no data set with label maps")
    scores = score_maps(args.maps, args.dataset, args.output)
    print("  ".join(f"{name} {value:.1f}" for name, value in scores.items()))


if __name__ == "__main__":
    sys.exit(main())
