"""In-context retrieval: predict the label of a cell from its nearest cells in a memory of training cells.

Shape shorthand: S the side of the square input, s the stride, h,w = S / s cells, D channels, K classes, M cells in the
memory.

Source: Balazevic et al., "Towards In-context Scene Understanding" (arXiv 2306.01667), as in vpariza/
open-hummingbird-eval, hbird/hbird_eval.py and hbird/utils/transforms.py, which reads patches of vision transformers.
Here a cell of a feature map takes the place of a patch. Other differences:

- Pixels without a label count nowhere, and cells without a labelled pixel are not stored (there: they become class 0).
- Predictions are scored as they are (there: after a Hungarian matching with the classes, although they have names).
- The search is exact, by faiss.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch.nn import functional as F

from densesiam_d2.data.augmentation import RandomResizedCrop
from densesiam_d2.data.color_augmentation import ColorJitter
from densesiam_d2.evaluation.confusion import confusion_matrix, scores
from densesiam_d2.evaluation.sem_seg import predicted_labels
from densesiam_d2.labels import IGNORE
from densesiam_d2.probe.cells import cell_counts
from densesiam_d2.probe.features import FrozenFeatures
from densesiam_d2.probe.passes import Images, augmented, bar, named_scores, resize_labels, squared

__all__ = ["Memory", "cells_per_crop", "crops", "probe_retrieval", "rarest_cells"]

EPOCHS = 2  # passes over the training images, with other crops each
NEIGHBOURS, TEMPERATURE = 30, 0.02


class Memory:
    """Cells with the shares of the classes among their pixels; a label is predicted by attention to the nearest cells.

    It has room for M cells from the start on, and :meth:`add` fills it.
    """

    def __init__(self, size: int, *, num_channels: int, num_classes: int):
        """Allocate M x (D + K) float32 numbers.

        Args:
            size: M.
            num_channels, num_classes: D, K.
        """
        self._cells = np.empty((size, num_channels), np.float32)
        self._shares = np.empty((size, num_classes), np.float32)
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, cells: torch.Tensor, counts: np.ndarray) -> None:
        """Add cells.

        Args:
            cells: (N, D) features, of any length.
            counts: (N, K) pixels of each class, at least one in each cell.
        """
        places = slice(self._filled, self._filled + len(cells))
        self._cells[places] = F.normalize(cells, dim=1).cpu().numpy()
        self._shares[places] = counts / counts.sum(axis=1, keepdims=True)
        self._filled += len(cells)

    def predict(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the mean shares of the 30 nearest cells (all, if there are fewer), weighted by softmax(cosine / 0.02).

        Args:
            cells: (N, D) features, of any length.

        Returns:
            (N, K) float32 on the CPU.
        """
        import faiss  # here, because few runs need it

        queries, memory = F.normalize(cells, dim=1).cpu().numpy(), self._cells[: self._filled]
        number = min(NEIGHBOURS, self._filled)
        cosines, nearest = faiss.knn(queries, memory, number, metric=faiss.METRIC_INNER_PRODUCT)
        weights = F.softmax(torch.from_numpy(cosines) / TEMPERATURE, dim=1)  # (N, 30)
        return torch.einsum("nm,nmk->nk", weights, torch.from_numpy(self._shares[nearest]))


def probe_retrieval(
    features: FrozenFeatures,
    train: Images,
    test: Images,
    classes: Sequence[str],
    *,
    memory_cells: int,
    seed: int,
) -> dict:
    """Fill a memory from two random crops of each training image, and score its predictions on whole test images.

    Args:
        features: the network.
        train, test: at least one image each. Test images are resized to squares.
        classes: names of the K classes.
        memory_cells: the largest M. All crops give the same number of cells, chosen by :func:`rarest_cells`.
        seed: of crops, colours and chosen cells.

    Returns:
        Scores in percent at S x S pixels ("mIoU", "pACC", "IoU" of each class), "cells" (M) and "seconds".

    Raises:
        ValueError: M is below one cell a crop, no cell has a label, or an image or its labels cannot be read.
    """
    start = time.perf_counter()
    share = cells_per_crop(memory_cells, len(train))
    memory = _fill(features, train, len(classes), share, seed)
    if not len(memory):
        raise ValueError("no cell of the training images has a labelled pixel")
    side, matrix = features.side, np.zeros((len(classes), len(classes)), np.int64)
    for index in bar(range(len(test)), "retrieving on test"):
        image, truth = test[index]
        x = features(squared(image, side))  # (D, h, w)
        found = memory.predict(x.flatten(1).T).T.reshape(1, len(classes), *x.shape[1:])
        pixels = F.interpolate(found, size=(side, side), mode="bilinear", align_corners=False)[0]
        truth = resize_labels(truth, side)
        matrix += confusion_matrix(truth, predicted_labels(pixels), len(classes), len(classes), IGNORE)
    seconds = round(time.perf_counter() - start, 1)
    return {**named_scores(scores(matrix), classes), "cells": len(memory), "seconds": seconds}


def rarest_cells(counts: np.ndarray, number: int, place: Sequence[int]) -> np.ndarray:
    """Choose cells at random, those with classes that few cells of the image hold before others.

    The score of a cell is the sum, over the classes that it holds, of the number of cells that hold the class, times a
    random number in [0, 1). The lowest scores are taken.

    Args:
        counts: (N, K) pixels of each class in the cells of an image.
        number: how many cells to take, fewer if not so many have a labelled pixel.
        place: numbers from which the random numbers follow.

    Returns:
        Indices of the chosen cells, in order.
    """
    holds = (counts > 0).astype(np.int64)
    frequencies = holds @ holds.sum(axis=0) * np.random.default_rng(place).random(len(counts))
    labelled = np.flatnonzero(holds.any(axis=1))
    return np.sort(labelled[np.argsort(frequencies[labelled], kind="stable")[:number]])


def crops(side: int) -> list[T.Augmentation]:
    """Return the augmentations of the memory: slightly other colours, and a crop resized to a square."""
    return [
        ColorJitter((0.1, 0.1, 0.1, 0.1), prob=0.5, independent=True, random_order=False),
        RandomResizedCrop(side, (0.5, 2.0)),  # above 1, the whole image or its largest central crop follows
    ]


def cells_per_crop(memory_cells: int, images: int) -> int:
    """Return how many cells of each crop are remembered, for some number of training images.

    Raises:
        ValueError: it is below one.
    """
    if memory_cells < EPOCHS * images:
        raise ValueError(f"--memory-cells {memory_cells} is too small for {images} images: at least {EPOCHS * images}")
    return memory_cells // (EPOCHS * images)


def _fill(features: FrozenFeatures, train: Images, num_classes: int, share: int, seed: int) -> Memory:
    """Return a memory with at most ``share`` cells of each crop."""
    side, augmentations = features.side, crops(features.side)
    share = min(share, (side // features.stride) ** 2)
    size = EPOCHS * len(train) * share
    memory = Memory(size, num_channels=features.channels, num_classes=num_classes)
    for epoch in range(EPOCHS):
        for index in bar(range(len(train)), "filling the memory"):
            image, labels = augmented(*train[index], augmentations, [seed, epoch, index])
            counts = cell_counts(labels, (side, side), features.stride, num_classes)[..., :-1].reshape(-1, num_classes)
            chosen = rarest_cells(counts, share, [seed, epoch, index])
            memory.add(features(image).flatten(1).T[torch.from_numpy(chosen)], counts[chosen])
    return memory
