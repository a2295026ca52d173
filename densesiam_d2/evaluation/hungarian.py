"""Unsupervised segmentation: give each class the cluster that fits best, then score as usual.

Shape shorthand: K classes, P clusters.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from densesiam_d2.evaluation.confusion import scores
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator

__all__ = ["HungarianSemSegEvaluator", "hungarian_match", "split_scores"]


def hungarian_match(matrix: np.ndarray) -> np.ndarray:
    """Return the order of the columns that puts the most pixels on the diagonal.

    Args:
        matrix: (K, P) counts, rows are classes. If P < K, empty columns are added, so every class gets a cluster.

    Returns:
        (max(K, P),) permutation: entry c < K is the cluster of class c; clusters without a class follow; their
        pixels are always wrong.

    Source: evaluation of janghyuncho/PiCIE (commons.py); one cluster per class, matched and scored on the same images.
    """
    num_classes = len(matrix)
    _, matched = linear_sum_assignment(_padded(matrix), maximize=True)
    rest = np.setdiff1d(np.arange(max(matrix.shape)), matched)
    assert len(matched) == num_classes
    return np.concatenate([matched, rest])


def _padded(matrix: np.ndarray) -> np.ndarray:
    """Add empty columns up to the number of rows."""
    return np.pad(matrix, ((0, 0), (0, max(0, matrix.shape[0] - matrix.shape[1]))))


def split_scores(matrix: np.ndarray, columns: np.ndarray, groups: dict[str, list[int]]) -> dict[str, float]:
    """Return the mIoU of each group of classes (things, stuff) by three definitions.

    - ``_full``: mean of the group's IoUs among all classes. False positives on every other class count.
    - ``_block``: mIoU inside the group's block of the matrix. Pixels of other classes, and pixels of the group that are
      predicted as another group, do not count. This is what the papers describe.
    - ``_released``: the numbers the papers print. The released evaluations of PiCIE and DenseSiam move *row* c to the
      index of its cluster instead of moving the cluster's column to c. The diagonal is the same, and so are mIoU and
      pACC. But rows are then in cluster order, and "the first 12 classes" are the first 12 clusters, not the
      classes that they match. Only defined for as many clusters as classes.

    Args:
        matrix: (K, P) counts in cluster order.
        columns: the permutation of :func:`hungarian_match`.
        groups: suffix of the group -> its class ids.

    Returns:
        ``mIoU_<group>_<reading>`` in percent.

    Source: commons.py in janghyuncho/PiCIE; densesiam/core/evaluators/cluster_mIoU_evaluator.py in ZwwWayne/DenseSiam.
    """
    num_classes = len(matrix)
    ordered = _padded(matrix)[:, columns]  # (K, max(K, P)), clusters in class order
    iou = scores(ordered)["IoU"]
    released = None
    if matrix.shape[1] == num_classes:
        released = np.empty_like(matrix)
        released[columns] = matrix  # row c moves to row columns[c]
    results = {}
    for name, ids in groups.items():
        valid = iou[ids][~np.isnan(iou[ids])]
        results[f"mIoU_{name}_full"] = float(valid.mean()) if valid.size else float("nan")
        results[f"mIoU_{name}_block"] = scores(ordered[np.ix_(ids, ids)])["mIoU"]
        if released is not None:
            results[f"mIoU_{name}_released"] = scores(released[np.ix_(ids, ids)])["mIoU"]
    return results


class HungarianSemSegEvaluator(SemSegConfusionEvaluator):
    """The same scores for clusters, after Hungarian matching of clusters to classes.

    Additional scores: the thing/stuff split of :func:`split_scores` where the metadata has ``thing_ids`` and
    ``stuff_ids``; "used_clusters", the number of clusters with a labelled pixel; "largest_cluster", the share of the
    labelled pixels in the largest cluster, in percent (near 100: the clustering has collapsed).
    """

    def _make_room(self, num_predicted: int) -> None:
        """Widen the matrix to the number of clusters."""
        missing = num_predicted - self._matrix.shape[1]
        if missing > 0:
            self._matrix = np.pad(self._matrix, ((0, 0), (0, missing)))

    def _score(self, matrix: np.ndarray) -> tuple[dict[str, float], dict]:
        columns = hungarian_match(matrix)
        results = self._named(scores(matrix[:, columns]))
        groups = {"th": self._metadata.get("thing_ids"), "st": self._metadata.get("stuff_ids")}
        if all(ids is not None for ids in groups.values()):
            results |= split_scores(matrix, columns, {name: list(ids) for name, ids in groups.items()})
        in_cluster = matrix.sum(axis=0)
        results["used_clusters"] = int((in_cluster > 0).sum())
        results["largest_cluster"] = float(100 * in_cluster.max() / max(in_cluster.sum(), 1))
        matched = {int(cluster): name for cluster, name in zip(columns, self._class_names, strict=False)}
        names = [matched.get(cluster) for cluster in range(matrix.shape[1])]
        return results, {"classes": self._class_names, "cluster_to_class": names}
