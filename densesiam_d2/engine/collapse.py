"""Detect collapse: all embeddings become equal although the loss falls."""

import logging

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

__all__ = ["CollapseError", "CollapseMonitor", "healthy_range"]

_WHAT_HELPS = (
    "A collapse does not heal: stop, and start again with a lower SOLVER.BASE_LR or a longer warm-up; "
    "MODEL.SSL.NORM should be a batch norm, and the images should differ"
)

# The lowest and the highest value of a metric that is not a collapse; None where there is no limit.
_HEALTHY = {
    "between": (0.5, None),
    "effective_rank": (1.5, None),
    "winners": (2, None),
    "largest_cluster": (None, 0.95),
    "assignment_entropy": (0.05, None),
}


def healthy_range(name: str, z_std_ideal: float | None = None) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value of a metric that is not a collapse; None where there is no limit.

    Args:
        name: the metric, without ``ssl/``.
        z_std_ideal: 1/sqrt(D), which lowers the limit of the effective rank for features with few channels.
    """
    low, high = _HEALTHY.get(name, (None, None))
    if name == "effective_rank" and z_std_ideal:
        low = min(low, round(z_std_ideal**-2) / 2)
    return low, high


class CollapseError(RuntimeError):
    """The embeddings have collapsed; the message gives the metrics."""


class CollapseMonitor(HookBase):
    """Warn when the ``ssl/*`` metrics show a collapse at several checks in a row.

    A check is an iteration that logged such metrics; without them the hook does nothing. It warns if

    - ``ssl/between`` is below ``min_between``: all images look alike (healthy: 0.8 to 1);
    - ``ssl/effective_rank`` is below the smaller of ``min_rank`` and D/2: most differences lie on one line;
    - ``ssl/winners`` is below 2: one region, cluster or prototype wins every point;
    - ``ssl/largest_cluster`` is above ``max_share``: one cluster has nearly all points;
    - ``ssl/assignment_entropy`` is below ``min_entropy``: nearly all points are assigned to one cluster.

    Each process checks the metrics of its own images. The count of bad checks starts at 0 after a resume.
    :func:`densesiam_d2.layers.embedding_spread` and :func:`densesiam_d2.layers.cluster_metrics` explain the metrics.
    """

    def __init__(
        self,
        *,
        min_between: float = _HEALTHY["between"][0],
        min_rank: float = _HEALTHY["effective_rank"][0],
        max_share: float = _HEALTHY["largest_cluster"][1],
        min_entropy: float = _HEALTHY["assignment_entropy"][0],
        patience: int = 5,
        repeat: int = 10,
        stop: bool = False,
    ):
        """Set the limits.

        Args:
            min_between, min_rank, min_entropy: the lowest values that are not a collapse.
            max_share: the highest value that is not one. With two clusters, small objects on a background, a healthy
                run can have 0.9.
            patience: bad checks in a row before the first warning.
            repeat: bad checks from one warning to the next.
            stop: raise :class:`CollapseError` instead of warning.
        """
        self._min_between = min_between
        self._min_rank = min_rank
        self._max_share = max_share
        self._min_entropy = min_entropy
        self._patience = patience
        self._repeat = repeat
        self._stop = stop
        self._bad_checks = 0

    def after_step(self) -> None:
        """Check the metrics of this iteration, if there are any.

        Raises:
            CollapseError: the embeddings have collapsed, and ``stop`` is True.
        """
        storage = get_event_storage()
        values = {
            name.removeprefix("ssl/"): value
            for name, (value, iteration) in storage.latest().items()
            if name.startswith("ssl/") and iteration == storage.iter
        }
        if not values:
            return
        complaints = self.complaints(values)
        self._bad_checks = self._bad_checks + 1 if complaints else 0
        if self._bad_checks < self._patience or (self._bad_checks - self._patience) % self._repeat:
            return
        message = (
            f"The embeddings or clusters have collapsed ({', '.join(complaints)}; {self._bad_checks} checks in a row): "
            f"{'  '.join(f'{name}: {value:.4f}' for name, value in sorted(values.items()))}. {_WHAT_HELPS}."
        )
        if self._stop:
            raise CollapseError(message)
        logging.getLogger(__name__).warning(message)

    def complaints(self, values: dict[str, float]) -> list[str]:
        """Return the signs of a collapse in the metrics of one check; the names have no ``ssl/`` prefix."""
        dim = round(values["z_std_ideal"] ** -2) if "z_std_ideal" in values else None
        min_rank = self._min_rank if dim is None else min(self._min_rank, dim / 2)
        complaints = []
        if values.get("between", self._min_between) < self._min_between:
            complaints.append(f"between below {self._min_between:g}: all images look alike")
        if values.get("effective_rank", min_rank) < min_rank:
            complaints.append(f"effective_rank below {min_rank:g}: most differences lie on one line")
        if values.get("winners", 2) < 2:
            complaints.append("winners: one region or cluster wins every point")
        if values.get("largest_cluster", 0) > self._max_share:
            complaints.append(f"largest_cluster above {self._max_share:g}: one cluster has nearly all points")
        if values.get("assignment_entropy", 1) < self._min_entropy:
            complaints.append(f"assignment_entropy below {self._min_entropy:g}: nearly all points go to one cluster")
        return complaints
