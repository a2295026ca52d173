"""Writers of metrics that cannot end a run."""

import logging
from collections.abc import Callable

from detectron2.utils.events import EventWriter, get_event_storage

__all__ = ["SSLMetricPrinter", "SafeWriter"]

logger = logging.getLogger(__name__)


class SafeWriter(EventWriter):
    """Another writer, made when first needed, whose failures are warnings: a full disk costs rows, not the run."""

    def __init__(self, make: Callable[[], EventWriter]):
        """Take what makes the writer; it may open files."""
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
    """Print the latest ``ssl/*`` metrics, which detectron2's own printer leaves out."""

    def write(self) -> None:
        latest = {k[4:]: v for k, (v, _) in get_event_storage().latest().items() if k.startswith("ssl/")}
        if latest:
            text = "  ".join(f"{name}: {value:.4f}" for name, value in sorted(latest.items()))
            logger.info(" ssl  %s", text)
