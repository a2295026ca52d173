"""Writers of metrics whose failures do not end a run."""

import logging
from collections.abc import Callable

from detectron2.utils.events import EventWriter, get_event_storage

__all__ = ["SSLMetricPrinter", "SafeWriter"]

logger = logging.getLogger(__name__)


class SafeWriter(EventWriter):
    """Wraps another writer and turns its OSErrors into warnings, so that training goes on when the disk is full."""

    def __init__(self, make: Callable[[], EventWriter]):
        """Store the function that makes the writer; it is called at the first write, because it may open files."""
        self._make, self._writer = make, None

    def write(self, **kwargs) -> None:
        try:
            self._writer = self._writer or self._make()
            self._writer.write(**kwargs)
        except OSError as error:
            logger.warning("cannot write metrics, training goes on: %s", error)

    def close(self) -> None:
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            logger.warning("cannot write metrics: %s", error)


class SSLMetricPrinter(EventWriter):
    """Print the latest ``ssl/*`` metrics, which detectron2's own printer does not print, if there are new ones."""

    _printed = -1  # iteration

    def write(self) -> None:
        latest = {k[4:]: v for k, v in get_event_storage().latest().items() if k.startswith("ssl/")}
        newest = max((iteration for _, iteration in latest.values()), default=-1)
        if newest > self._printed:
            self._printed, latest = newest, {name: value for name, (value, _) in latest.items()}
            text = "  ".join(f"{name}: {value:.4f}" for name, value in sorted(latest.items()))
            logger.info(" ssl  %s", text)
