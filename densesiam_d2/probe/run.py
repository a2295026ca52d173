"""One probe: fit on the training images, choose lambda on some of them, score on the test images.

Shape shorthand: h,w cells, D channels, K classes, M cells in the memory of the nearest neighbours.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from densesiam_d2.evaluation.confusion import confusion_matrix, scores
from densesiam_d2.evaluation.sem_seg import predicted_labels
from densesiam_d2.labels import IGNORE
from densesiam_d2.probe.cells import IGNORED, cell_modes
from densesiam_d2.probe.features import FrozenFeatures
from densesiam_d2.probe.knn import nearest_votes
from densesiam_d2.probe.passes import Images, bar, named_scores
from densesiam_d2.probe.ridge import LAMBDAS, LinearClassifier, Moments, fit_ridge

__all__ = ["held_out_images", "probe"]

_QUERIES = 1024  # cells per block in the search for neighbours

Classify = Callable[[torch.Tensor], dict]  # (N, D) features -> (N, K) scores of each classifier by its name


@dataclass
class _Sums:
    """Results of one pass over the training images.

    Attributes:
        fit, held_out: sums over the cells of the images for fitting, and of those for choosing lambda.
        memory: (M, D) float32 features of a sample of these cells, not standardised.
        memory_labels: (M,) int64.
    """

    fit: Moments
    held_out: Moments
    memory: torch.Tensor
    memory_labels: torch.Tensor


def probe(
    features: FrozenFeatures,
    train: Images,
    test: Images,
    classes: Sequence[str],
    *,
    ks: Sequence[int],
    knn_cells: int,
    seed: int,
) -> dict:
    """Score frozen features by ridge regression and by nearest neighbours.

    Lambda is the one of ``LAMBDAS`` with the best mIoU on :func:`held_out_images` after a fit on the others (if
    equal, the lowest); the scored classifier is then fitted on all. Each number of neighbours is scored.

    Args:
        features: the network.
        train: at least two images.
        test: at least one image.
        classes: names of the K classes.
        ks: numbers of neighbours; empty leaves them out.
        knn_cells: maximum number of training cells that can be neighbours. Each image gives the same number of its
            labelled cells, drawn at random.
        seed: of the choice of held-out images and cells.

    Returns:
        "ridge": scores in percent ("mIoU", "pACC", "IoU" of each class), "lambda", and "held_out" (mIoU there of each
        lambda); "knn": the same scores of each k; "cells": number of labelled training cells; "knn_cells": number of
        those that could be neighbours; "seconds".

    Raises:
        ValueError: too few images or cells, or an image or its labels cannot be read.
    """
    start = time.perf_counter()
    held = held_out_images(len(train), seed)
    sums = _sum_up(features, train, held, len(classes), knn_cells if ks else 0, seed)
    if ks and max(ks) > len(sums.memory):
        raise ValueError(f"--knn {max(ks)}: only {len(sums.memory)} labelled cells can be neighbours")
    candidates = partial(_linear_scores, {p: fit_ridge(sums.fit, p) for p in LAMBDAS})
    matrices = _count(features, train, held, candidates, len(classes), "choosing lambda")
    by_penalty = {p: scores(matrix)["mIoU"] for p, matrix in matrices.items()}
    penalty = max(LAMBDAS, key=lambda p: np.nan_to_num(by_penalty[p], nan=-1))

    moments = sums.fit + sums.held_out
    ridge = partial(_linear_scores, {"ridge": fit_ridge(moments, penalty)})
    neighbours = _neighbours(moments, sums, ks, len(classes))
    matrices = _count(
        features, test, range(len(test)), lambda x: ridge(x) | neighbours(x), len(classes), "scoring on test"
    )
    named = {name: named_scores(scores(matrix), classes) for name, matrix in matrices.items()}
    return {
        "ridge": named.pop("ridge") | {"lambda": penalty, "held_out": {f"{p:g}": v for p, v in by_penalty.items()}},
        "knn": named,
        "cells": int(moments.counts.sum()),
        "knn_cells": len(sums.memory),
        "seconds": round(time.perf_counter() - start, 1),
    }


def held_out_images(count: int, seed: int) -> list[int]:
    """Draw the training images for choosing lambda, sorted: a tenth of them, but at least five (or half, if fewer).

    Raises:
        ValueError: there are fewer than two images.
    """
    if count < 2:
        raise ValueError(f"{count} image is too few to fit on; one more is needed to choose lambda")
    number = max(round(count / 10), min(5, count // 2))
    return sorted(np.random.default_rng(seed).permutation(count)[:number].tolist())


def _sum_up(
    features: FrozenFeatures, train: Images, held: Sequence[int], num_classes: int, knn_cells: int, seed: int
) -> _Sums:
    """Pass over the training images once."""
    device = features.device
    center = features(train[0][0]).flatten(1).mean(dim=1)
    fit, held_out = (Moments(center, num_classes=num_classes) for _ in range(2))
    share = -(-knn_cells // len(train))  # cells of each image, rounded up
    # Allocated once: small arrays between large ones would prevent the heap from reusing the memory of the large ones.
    memory = torch.empty(share * len(train), features.channels, device=device)
    memory_labels = torch.empty(len(memory), dtype=torch.int64, device=device)
    filled = 0
    for index in bar(range(len(train)), "summing up"):
        image, truth = train[index]
        x = features(image)  # (D, h, w)
        labels = cell_modes(truth, features.input_size(*truth.shape), features.stride, num_classes).reshape(-1)
        labelled = np.flatnonzero(labels != IGNORED)
        rows = torch.from_numpy(labelled).to(device)
        cells, labels = x.flatten(1).T[rows], torch.from_numpy(labels[labelled]).to(device)  # (N, D), (N,)
        (held_out if index in held else fit).add(cells, labels)
        drawn = torch.from_numpy(np.sort(np.random.default_rng([seed, index]).permutation(len(cells))[:share]))
        places = slice(filled, filled := filled + len(drawn))
        memory[places], memory_labels[places] = cells[drawn.to(device)], labels[drawn.to(device)]
    kept = np.sort(np.random.default_rng(seed).permutation(filled)[:knn_cells])  # removes the surplus from rounding up
    kept = torch.from_numpy(kept).to(device)
    return _Sums(fit, held_out, memory[kept], memory_labels[kept])


def _linear_scores(classifiers: Mapping[object, LinearClassifier], cells: torch.Tensor) -> dict:
    cells = cells.double()
    return {name: cells @ c.weight + c.bias for name, c in classifiers.items()}


def _neighbours(moments: Moments, sums: _Sums, ks: Sequence[int], num_classes: int) -> Classify:
    """Return a classifier by nearest neighbours; its results are named by the number of neighbours."""
    if not ks:
        return lambda cells: {}
    mean, scale = (values.float() for values in moments.mean_and_scale())
    memory = F.normalize((sums.memory - mean) * scale, dim=1)

    def classify(cells: torch.Tensor) -> dict:
        standardised = (cells - mean) * scale
        return nearest_votes(standardised, memory, sums.memory_labels, ks=ks, num_classes=num_classes, block=_QUERIES)

    return classify


def _count(
    features: FrozenFeatures,
    images: Images,
    indices: Sequence[int],
    classify: Classify,
    num_classes: int,
    task: str,
) -> dict:
    """Return the confusion matrix (K, K) of each classifier over all labelled pixels of some images."""
    matrices = {}
    for index in bar(indices, task):
        image, truth = images[index]
        x = features(image)  # (D, h, w)
        for name, cells in classify(x.flatten(1).T).items():
            cell_scores = cells.T.reshape(1, num_classes, *x.shape[1:]).float()
            pixels = F.interpolate(cell_scores, size=truth.shape, mode="bilinear", align_corners=False)[0]
            matrix = confusion_matrix(truth, predicted_labels(pixels), num_classes, num_classes, IGNORE)
            matrices[name] = matrices.get(name, 0) + matrix
    return matrices
