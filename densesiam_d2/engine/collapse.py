"""Detect collapse: all embeddings become equal although the loss falls."""

import logging

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

__all__ = ["CollapseError", "CollapseMonitor", "healthy_range"]

_WHAT_HELPS = (
    "A collapse does not heal: stop, and start again with a lower SOLVER.BASE_LR or a longer warm-up; "
    "MODEL.SSL.NORM should be a batch norm, and the images should differ"
)

# Metric -> the lowest and the highest value that is not a collapse (None: no limit), and what it means beyond that.
# With two clusters, small objects on a background, a healthy run can have a largest cluster of 0.9.
_HEALTHY = {
    "between": (0.5, None, "all images look alike"),
    "effective_rank": (1.5, None, "most differences lie on one line"),
    "winners": (2, None, "one region or cluster wins every point"),
    "largest_cluster": (None, 0.95, "one cluster has nearly all points"),
    "assignment_entropy": (0.05, None, "nearly all points go to one cluster"),
}


def healthy_range(name: str, z_std_ideal: float | None = None) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value of a metric that is not a collapse; None where there is no limit.

    Args:
        name: the metric, without ``ssl/``.
        z_std_ideal: 1/sqrt(D), which lowers the limit of the effective rank to D/2 for features with few channels.
    """
    low, high, _ = _HEALTHY.get(name, (None, None, ""))
    if name == "effective_rank" and z_std_ideal:
        low = min(low, round(z_std_ideal**-2) / 2)
    return low, high


class CollapseError(RuntimeError):
    """The embeddings have collapsed; the message gives the metrics."""


class CollapseMonitor(HookBase):
    """Warn when the ``ssl/*`` metrics show a collapse at several checks in a row.

    A check is an iteration that logged such metrics; without them the hook does nothing. :func:`healthy_range` has the
    limits. Each process checks the metrics of its own images. The count of bad checks starts at 0 after a resume.
    :func:`densesiam_d2.layers.embedding_spread` and :func:`densesiam_d2.layers.cluster_metrics` explain the metrics.
    """

    def __init__(self, *, patience: int = 5, repeat: int = 10, stop: bool = False):
        """Set what happens at a collapse.

        Args:
            patience: bad checks in a row before the first warning.
            repeat: bad checks from one warning to the next.
            stop: raise :class:`CollapseError` instead of warning.
        """
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

    @staticmethod
    def complaints(values: dict[str, float]) -> list[str]:
        """Return the signs of a collapse in the metrics of one check; the names have no ``ssl/`` prefix."""
        complaints = []
        for name in sorted(_HEALTHY.keys() & values.keys()):
            low, high = healthy_range(name, values.get("z_std_ideal"))
            meaning = _HEALTHY[name][2]
            if low is not None and values[name] < low:
                complaints.append(f"{name} below {low:g}: {meaning}")
            if high is not None and values[name] > high:
                complaints.append(f"{name} above {high:g}: {meaning}")
        return complaints
