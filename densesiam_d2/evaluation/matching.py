"""Unsupervised segmentation: which class each cluster stands for.

Shape shorthand: K classes, P clusters. A matching is (P,) class ids, with NO_CLASS for clusters without a class.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from densesiam_d2.evaluation.confusion import mean_of_known, scores

__all__ = ["MATCHINGS", "NO_CLASS", "as_classes", "match_clusters", "split_scores"]

NO_CLASS = -1


def match_clusters(matrix: np.ndarray, matching: str) -> np.ndarray:
    """Return the class of each cluster.

    - "hungarian": one-to-one, the most right pixels in total (PiCIE, DenseSiam).
    - "hungarian_iou": one-to-one, the largest sum of IoUs (Leopart, with as many clusters as classes).
    - "majority": many-to-one, each cluster to the class of most of its pixels, which is the class with the highest
      precision (Leopart, with more clusters than classes). A tie goes to the class with the lower number.

    One-to-one matchings give min(K, P) clusters a class: with P > K some clusters have none, and with P < K some
    classes have no cluster. In "majority" only clusters without a pixel have no class, and a class may have no cluster.

    Args:
        matrix: (K, P) counts, rows are classes.
        matching: one of ``MATCHINGS``.

    Returns:
        (P,) class ids, NO_CLASS for clusters without a class.

    Source: commons.py in janghyuncho/PiCIE; experiments/utils.py and experiments/overcluster in MkuuWaUjinga/leopart.
    """
    return MATCHINGS[matching](matrix)


def _one_to_one(matrix: np.ndarray) -> np.ndarray:
    """Return the matching with the largest sum of the entries of a (K, P) matrix."""
    classes = np.full(matrix.shape[1], NO_CLASS)
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    classes[columns] = rows
    return classes


def _iou(matrix: np.ndarray) -> np.ndarray:
    """Return the (K, P) IoUs of each class with each cluster; 0 where neither has a pixel."""
    union = matrix.sum(axis=1, keepdims=True) + matrix.sum(axis=0, keepdims=True) - matrix
    return matrix / np.maximum(union, 1)


def _majority(matrix: np.ndarray) -> np.ndarray:
    return np.where(matrix.sum(axis=0) > 0, matrix.argmax(axis=0), NO_CLASS)


MATCHINGS = {"hungarian": _one_to_one, "hungarian_iou": lambda matrix: _one_to_one(_iou(matrix)), "majority": _majority}


def as_classes(matrix: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return a confusion matrix of classes.

    Args:
        matrix: (K, P) counts, rows are classes, columns are clusters.
        classes: (P,) a matching.

    Returns:
        (K, K + 1) counts; the last column has the pixels in clusters without a class, which are always wrong.
    """
    num_classes = len(matrix)
    merged = np.zeros((num_classes, num_classes + 1), matrix.dtype)
    np.add.at(merged.T, np.where(classes == NO_CLASS, num_classes, classes), matrix.T)
    return merged


def split_scores(matrix: np.ndarray, classes: np.ndarray, groups: dict[str, list[int]]) -> dict[str, float]:
    """Return the mIoU of each group of classes (things, stuff) by three definitions.

    - ``_full``: mean of the group's IoUs among all classes. False positives on every other class count.
    - ``_block``: mIoU inside the group's block of the matrix. Pixels of other classes, and pixels of the group that are
      predicted as another group or by a cluster without a class, do not count. This is what the papers describe.
    - ``_released``: the numbers the papers print. The released evaluations of PiCIE and DenseSiam move *row* c to the
      index of its cluster instead of moving the cluster's column to c. The diagonal is the same, and so are mIoU and
      pACC. But rows are then in cluster order, and "the first 12 classes" are the first 12 clusters, not the
      classes that they match. Only defined if every class has exactly one cluster and every cluster a class.

    Args:
        matrix: (K, P) counts in cluster order.
        classes: (P,) a matching.
        groups: suffix of the group -> its class ids.

    Returns:
        ``mIoU_<group>_<reading>`` in percent.

    Source: commons.py in janghyuncho/PiCIE; densesiam/core/evaluators/cluster_mIoU_evaluator.py in ZwwWayne/DenseSiam.
    """
    merged = as_classes(matrix, classes)
    iou = scores(merged)["IoU"]
    released = matrix[classes] if sorted(classes) == list(range(len(matrix))) else None  # row p is the class of p
    results = {}
    for name, ids in groups.items():
        results[f"mIoU_{name}_full"] = mean_of_known(iou[ids])
        results[f"mIoU_{name}_block"] = scores(merged[np.ix_(ids, ids)])["mIoU"]
        if released is not None:
            results[f"mIoU_{name}_released"] = scores(released[np.ix_(ids, ids)])["mIoU"]
    return results
