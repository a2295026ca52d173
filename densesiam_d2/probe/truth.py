"""Images with label maps, or with instances turned into label maps of foreground."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_image_size

from densesiam_d2.data.label_checks import LABEL_MAP_KINDS, require_labels
from densesiam_d2.image_io import label_table, read_image
from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.class_maps import read_class_map
from densesiam_d2.labels.foreground import FOREGROUND_CLASSES, foreground_of

__all__ = ["LabelledImages", "labelled_pair"]


class LabelledImages(Sequence):
    """The images and labels of a registered dataset, read on access.

    Datasets with label maps keep their classes; datasets of instances have two, background and foreground.

    Attributes:
        name: of the dataset.
        classes: names, in the order of the labels.
    """

    def __init__(self, name: str, *, white_level: int):
        """Check the labels of a dataset, log the findings, and load its records.

        Args:
            name: of a registered dataset.
            white_level: see :func:`densesiam_d2.image_io.read_image`.

        Raises:
            LabelsError: the labels cannot be used.
            ValueError: the class names are unknown, or there are too many classes.
        """
        metadata = MetadataCatalog.get(name)
        self.name = name
        self._semantic = metadata.get("evaluator_type") in LABEL_MAP_KINDS
        found = require_labels(name, semantic=self._semantic, masks=True)
        if self._semantic and not found.classes:
            raise ValueError(f"{name!r} names no classes: add ,classes=FILE with one name a line")
        self.classes = list(found.classes) if self._semantic else FOREGROUND_CLASSES
        if len(self.classes) > IGNORE:
            raise ValueError(f"{name!r} has {len(self.classes)} classes; {IGNORE} at most can be probed")
        self._records = DatasetCatalog.get(name)
        self._white_level = white_level
        self._ignore_label = metadata.get("ignore_label", IGNORE)
        self._label_map = label_table(metadata.get("label_map"))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3), uint8 RGB, and its labels (H, W), uint8: classes or ``IGNORE``.

        Raises:
            ValueError: a file cannot be read, image and labels differ in size, or a label is not a class.
        """
        record = dict(self._records[index])
        image = read_image(record["file_name"], white_level=self._white_level)
        check_image_size(record, image)
        if not self._semantic:
            return image, foreground_of(record["annotations"], *image.shape[:2])
        labels = read_class_map(
            record["sem_seg_file_name"],
            record["file_name"],
            image.shape[:2],
            label_map=self._label_map,
            num_classes=len(self.classes),
            ignore_label=self._ignore_label,
        )
        return image, np.where(labels == self._ignore_label, IGNORE, labels).astype(np.uint8)


def labelled_pair(train: str, test: str, *, white_level: int) -> tuple[LabelledImages, LabelledImages]:
    """Return the images to fit on and those to score on.

    Args:
        train, test: names of registered datasets.
        white_level: see :class:`LabelledImages`.

    Raises:
        LabelsError: labels cannot be used.
        ValueError: class names are unknown, or the two sets have different classes.
    """
    pair = tuple(LabelledImages(name, white_level=white_level) for name in (train, test))
    if pair[0].classes != pair[1].classes:
        one, other = (f"{images.name!r} has the classes {', '.join(images.classes)}" for images in pair)
        raise ValueError(f"{one}; {other}: they must be equal")
    return pair
