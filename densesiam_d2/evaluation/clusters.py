"""Unsupervised segmentation: match clusters with classes, then score as usual.

Shape shorthand: K classes, P clusters.
"""

import numpy as np

from densesiam_d2.evaluation.confusion import scores
from densesiam_d2.evaluation.matching import MATCHINGS, NO_CLASS, as_classes, match_clusters, split_scores
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator

__all__ = ["ClusterSemSegEvaluator"]


class ClusterSemSegEvaluator(SemSegConfusionEvaluator):
    """The scores of :class:`SemSegConfusionEvaluator` for clusters, after matching them with classes.

    Any number of clusters is accepted. Additional scores:

    - ``mIoU_<matching>``, ``pACC_<matching>`` and ``unmatched_classes_<matching>`` (classes without a cluster) of every
      matching of :func:`match_clusters`; the scores without a suffix, such as "mIoU", are those of ``matching``;
    - the thing/stuff split of :func:`split_scores` where the metadata has ``thing_ids`` and ``stuff_ids``;
    - "used_clusters", the number of clusters with a labelled pixel;
    - "largest_cluster", the share of the labelled pixels in the largest cluster, in percent (near 100: the clustering
      has collapsed).

    The matchings are fitted on the scored images, or on another set by :meth:`fit`.
    """

    def __init__(self, dataset_name: str, *, matching: str = "hungarian", **kwargs):
        """Store the matching.

        Args:
            dataset_name: see :class:`SemSegConfusionEvaluator`.
            matching: which of ``MATCHINGS`` gives the scores without a suffix.
            kwargs: further arguments of :class:`SemSegConfusionEvaluator`.
        """
        super().__init__(dataset_name, **kwargs)
        self._matching = matching
        self._fit: tuple[str, np.ndarray] | None = None

    def fit(self, other: "ClusterSemSegEvaluator") -> None:
        """Take the matchings from another evaluator's images.

        Args:
            other: an evaluator whose :meth:`evaluate` has been called in all processes.

        Raises:
            ValueError: its data set has other classes.
        """
        if other._class_names != self._class_names:
            raise ValueError(
                f"TEST.SEM_SEG_MATCHING_FIT: the classes of {other._dataset_name} ({', '.join(other._class_names)}) "
                f"are not those of {self._dataset_name} ({', '.join(self._class_names)})"
            )
        self._fit = (other._dataset_name, other.confusion)

    def reset(self) -> None:
        super().reset()
        self._matrix = self._matrix[:, :0]  # the number of clusters is not known yet

    def _make_room(self, num_predicted: int) -> None:
        """Widen the matrix to the number of clusters."""
        missing = num_predicted - self._matrix.shape[1]
        if missing > 0:
            self._matrix = np.pad(self._matrix, ((0, 0), (0, missing)))

    def _score(self, matrix: np.ndarray) -> tuple[dict[str, float], dict]:
        fit_on, fitted = self._fit or (self._dataset_name, matrix)
        matchings = {name: match_clusters(fitted, name) for name in MATCHINGS}
        classes = matchings[self._matching]
        results = self._named(scores(as_classes(matrix, classes)))
        for name, other in matchings.items():
            values = scores(as_classes(matrix, other))
            results |= {f"{score}_{name}": values[score] for score in ("mIoU", "pACC")}
            results[f"unmatched_classes_{name}"] = self._num_classes - len(set(other) - {NO_CLASS})
        groups = {"th": self._metadata.get("thing_ids"), "st": self._metadata.get("stuff_ids")}
        if all(ids is not None for ids in groups.values()):
            results |= split_scores(matrix, classes, {name: list(ids) for name, ids in groups.items()})
        in_cluster = matrix.sum(axis=0)
        results["used_clusters"] = int((in_cluster > 0).sum())
        results["largest_cluster"] = float(100 * in_cluster.max() / max(in_cluster.sum(), 1))
        how = {"matching": self._matching, "matching_fitted_on": fit_on, "num_clusters": matrix.shape[1]}
        self.protocol = {**how, **self.protocol, "matching": self._matching}
        self.cluster_classes = [None if c == NO_CLASS else int(c) for c in classes]
        return results, {
            "cluster_to_class": self._class_of(classes),
            "cluster_to_class_by_matching": {name: self._class_of(other) for name, other in matchings.items()},
        }

    def _class_of(self, classes: np.ndarray) -> list[str | None]:
        """Return the name of each cluster's class, None for clusters without one."""
        return [None if c == NO_CLASS else self._class_names[c] for c in classes]
