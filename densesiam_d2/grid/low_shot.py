"""Trainings on few labels: nested subsets, schedules that fit them, and the cells of a low-shot curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.data.path_datasets import COCO_PREFIX, MASKS_PREFIX
from densesiam_d2.engine.labels import settle_labels
from densesiam_d2.grid.cells import Cell, Score
from densesiam_d2.grid.schedules import LAST_LAYERS_LR_FACTOR, low_shot_iterations, stretched
from densesiam_d2.grid.starts import Start
from densesiam_d2.modeling import model_output, trains_on_views

__all__ = ["ALL", "count_labels", "label_counts", "low_shot_cells", "subset_name", "transfer_scores", "transfer_words"]

ALL = "all"


def subset_name(train: str, labels: int | str, seed: int) -> str:
    """Return the name of a random subset; with one seed, a smaller subset lies in a larger one."""
    return train if labels == ALL else f"{train},subset={labels},seed={seed}"


def count_labels(cfg: CfgNode, train: str, test: str, fixed: Sequence[str] = ()) -> int:
    """Check the labels of both sets as a training does, and return the number of annotated training images.

    Args:
        cfg: a config of supervised training; it is not changed.
        train, test: names of the datasets.
        fixed: keys that the user has set.

    Raises:
        ValueError: a name is that of several datasets.
        LabelsError: the labels cannot be used.
    """
    for name in (train, test):
        if name not in DatasetCatalog:
            raise ValueError(f"{name} must be the name of one data set, without brackets")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,)
    settle_labels(cfg, fixed=fixed)
    return sum(_has_labels(record) for record in DatasetCatalog.get(train))


def _has_labels(record: Mapping) -> bool:
    if "annotations" not in record:
        return "sem_seg_file_name" in record
    return any(not annotation.get("iscrowd") for annotation in record["annotations"])


def label_counts(words: Sequence[str], train: str, total: int) -> dict[int | str, int]:
    """Return the numbers of labelled images that ``--labels`` asks for: number or "all" -> number of images.

    Args:
        words: numbers, or "all".
        train: name of the dataset to draw from.
        total: its number of annotated images.

    Raises:
        ValueError: a number cannot be drawn.
    """
    counts = {}
    for word in dict.fromkeys(words):
        if word == ALL:
            counts[ALL] = total
            continue
        if not word.isdecimal() or int(word) < 1:
            raise ValueError(f"--labels {word}: a number above 0, or all")
        if int(word) >= total:
            raise ValueError(f"--labels {word}: {train} has {total} annotated images; write all to take them all")
        if not train.startswith((COCO_PREFIX, MASKS_PREFIX)) or ",subset=" in train:
            raise ValueError(
                f"--labels {word}: random subsets are drawn from coco:FILE.json[,images=DIR] or "
                f"masks:IMAGES,labels=DIR[,classes=FILE] without subset=, not from {train}"
            )
        counts[int(word)] = int(word)
    return counts


def transfer_scores(cfg: CfgNode, test: str) -> tuple[Score, ...]:
    """Return the scores of a supervised config: mask AP and box AP, box AP, or mIoU; the first is the main one.

    Raises:
        ValueError: the config does not train a detector or a semantic segmentation with labels.
    """
    output = None if trains_on_views(cfg) else model_output(cfg)
    if output is None:
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} does not learn from labels: name a detector or an FCN")
    if output == "semantic":
        return (Score("mIoU", "results.json", "*.sem_seg.mIoU"),)
    box = Score("box AP", "results.json", "*.bbox.AP")
    mask = Score("mask AP", "results.json", "*.segm.AP")
    if not cfg.MODEL.MASK_ON:
        return (box,)
    only_masks = MetadataCatalog.get(test).get("evaluator_type") == "cityscapes_instance"
    return (mask,) if only_masks else (mask, box)


def transfer_words(
    cfg: CfgNode,
    *,
    script: Path,
    config_file: str,
    weights: str,
    train: str,
    test: str,
    labels: int | str,
    count: int,
    seed: int,
    length: float,
    num_gpus: int,
    opts: Sequence[str],
) -> tuple[tuple[str, ...], int]:
    """Return the command of one supervised training, without its OUTPUT_DIR, and its number of iterations.

    Args:
        cfg: the config with ``opts``.
        script: train_net.py.
        config_file: the yaml.
        weights: MODEL.WEIGHTS.
        train, test: names of the datasets.
        labels: number of labelled images, or "all".
        count: the number of images that this is.
        seed: of the subset and the training.
        length: factor on the number of iterations.
        num_gpus: number of processes.
        opts: further keys and values.
    """
    iterations = low_shot_iterations(count, cfg.SOLVER.IMS_PER_BATCH, length=length)
    words = ["python", str(script), "--config-file", config_file, "--num-gpus", str(num_gpus), "--resume", "auto"]
    words += [*stretched(cfg, iterations), "SOLVER.LAST_LAYERS_LR_FACTOR", str(LAST_LAYERS_LR_FACTOR)]
    words += ["TEST.EVAL_PERIOD", "0", *opts, "MODEL.WEIGHTS", weights]
    words += ["DATASETS.TRAIN", subset_name(train, labels, seed), "DATASETS.TEST", test, "SEED", str(seed)]
    return tuple(words), iterations


def low_shot_cells(
    cfg: CfgNode,
    *,
    root: Path,
    counts: Mapping[int | str, int],
    starts: Sequence[Start],
    seeds: int,
    test: str,
    **command,
) -> list[Cell]:
    """Return one training for each seed, number of labels and start, in this order, so that a first curve comes early.

    Args:
        cfg: the config of the trainings.
        root: the grid's folder.
        counts: from :func:`label_counts`.
        starts: the starts.
        seeds: number of seeds, from 0.
        test: the set for the scores.
        command: the other arguments of :func:`transfer_words`.
    """
    cells = []
    for seed in range(seeds):
        for labels, count in counts.items():
            for start in starts:
                name = f"{start.name}/labels_{labels}/seed_{seed}"
                words, iterations = transfer_words(
                    cfg, weights=start.weights, labels=labels, count=count, seed=seed, test=test, **command
                )
                words += ("OUTPUT_DIR", str(root / name))
                axes = {"start": start.name, "labels": count, "seed": seed}
                scores = transfer_scores(cfg, test)
                cells.append(Cell(name, "low_shot", words, root, axes, scores=scores, work=iterations))
    return cells
