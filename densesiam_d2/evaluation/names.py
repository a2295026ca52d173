"""Class names of model and dataset: which number of the dataset each output of the model means."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from densesiam_d2.labels.classes import class_order

__all__ = ["model_order", "warn_of_absent"]

logger = logging.getLogger(__name__)


def model_order(cfg: CfgNode, dataset_name: str, key: str) -> list[int] | None:
    """Return the number in a test set of each class of the model; None where both count alike.

    Args:
        cfg: MODEL.CLASS_NAMES are the model's classes; without any, those of the first set of DATASETS.TRAIN.
        dataset_name: the test set.
        key: of the names in the metadata, "thing_classes" or "stuff_classes".

    Raises:
        ValueError: MODEL.CLASS_NAMES are other classes than those of the test set.
    """
    test = MetadataCatalog.get(dataset_name).get(key)
    if test is None:
        return None
    if cfg.MODEL.CLASS_NAMES:
        try:
            order = class_order(cfg.MODEL.CLASS_NAMES, test)
        except ValueError as error:
            raise ValueError(f"{dataset_name}: MODEL.CLASS_NAMES are not its classes: {error}") from None
    else:
        train = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get(key) if cfg.DATASETS.TRAIN else None
        try:
            order = class_order(train or test, test)
        except ValueError as error:
            logger.warning(
                "%s: its classes are not those of %s (%s): outputs are taken in the order %s",
                *(dataset_name, cfg.DATASETS.TRAIN[0], error, ", ".join(test[:8])),
            )
            return None
    if order is not None:
        logger.info("%s: its classes have another order than the model's; they are matched by name", dataset_name)
    return order


def warn_of_absent(dataset_name: str, absent: Sequence[str], what: str) -> None:
    """Name the classes that a test set does not hold, for their scores do not exist.

    Args:
        dataset_name: the test set.
        absent: names of the classes.
        what: "instance" or "pixel".
    """
    if absent:
        logger.warning("%s: %d classes have no %s: %s", dataset_name, len(absent), what, ", ".join(absent))
