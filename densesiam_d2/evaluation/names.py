"""Match the classes of model and dataset by name."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from densesiam_d2.labels.classes import class_order

__all__ = ["check_predicted_classes", "model_order", "warn_of_absent"]

logger = logging.getLogger(__name__)


def model_order(cfg: CfgNode, dataset_name: str, key: str, test: Sequence[str] | None = None) -> list[int] | None:
    """Return, for each class of the model, its number in a test set; None if both have the same order.

    Args:
        cfg: MODEL.CLASS_NAMES are the model's classes; if empty, those of the first dataset of DATASETS.TRAIN.
        dataset_name: the test set.
        key: metadata key of the names, "thing_classes" or "stuff_classes".
        test: names of the test set; None takes those of its metadata.

    Raises:
        ValueError: MODEL.CLASS_NAMES are not the classes of the test set.
    """
    test = test or MetadataCatalog.get(dataset_name).get(key)
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


def check_predicted_classes(dataset_name: str, instances: Instances, num_classes: int) -> None:
    """Check that a test set has the classes that a model predicts.

    Args:
        dataset_name: the test set.
        instances: predictions for one image, with ``pred_classes``.
        num_classes: of the test set.

    Raises:
        ValueError: a class has a number that the test set does not have.
    """
    highest = int(instances.pred_classes.max()) if len(instances) else 0
    if highest >= num_classes:
        raise ValueError(
            f"dataset {dataset_name} has {num_classes} classes, but the model predicts number {highest} (from 0): "
            "test on a dataset with the classes that the model was trained on (MODEL.ROI_HEADS.NUM_CLASSES)"
        )


def warn_of_absent(dataset_name: str, absent: Sequence[str], what: str) -> None:
    """Warn of classes that do not occur in a test set, because they have no score.

    Args:
        dataset_name: the test set.
        absent: names of the classes.
        what: "instance", "object" or "pixel".
    """
    if absent:
        logger.warning("%s: classes without any %s (%d): %s", dataset_name, what, len(absent), ", ".join(absent))
