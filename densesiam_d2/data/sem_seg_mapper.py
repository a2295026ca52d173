"""The mapper of supervised semantic segmentation and of the evaluation of unsupervised segmentation."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, check_image_size
from detectron2.projects.point_rend import ColorAugSSDTransform

from densesiam_d2.image_io import WHITE_LEVEL, label_table, read_image
from densesiam_d2.labels.class_maps import read_class_map
from densesiam_d2.labels.foreground import foreground_of

from .augmentation import ResizeCenterCrop

__all__ = ["SemSegDatasetMapper"]


class SemSegDatasetMapper:
    """Map a dataset dict to the input of detectron2's ``SemanticSegmentor``.

    The callable does the following:

    1. Read the image from "file_name"
    2. If ``label_key`` is set, read the label map from "sem_seg_file_name", turn raw values into classes by the
       dataset's ``label_map`` and refuse any other value; or draw foreground and background from "annotations"
    3. Apply the augmentations to both
    4. Prepare both as tensors

    In training the label map has the key "sem_seg". In testing on centre crops it has the key "sem_seg_target", so that
    the crop is scored against its own label map. In testing on whole images it is not read here, because the evaluator
    reads it at full size.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        label_key: str | None,
        label_map: Sequence[int] | None = None,
        ignore_label: int = 255,
        num_classes: int | None = None,
        crops: bool = False,
        white_level: int = WHITE_LEVEL,
    ):
        """Store the augmentations and the meaning of the labels.

        Args:
            augmentations: are applied to image and label map.
            image_format: "RGB" or "BGR".
            label_key: key of the label map in the result; None if label maps are not read.
            label_map: 256 numbers, the class or ``ignore_label`` of each raw value; None means that values are classes.
            ignore_label: value of pixels that do not count.
            num_classes: number of classes, for the check of label maps; None skips the check.
            crops: whether "height" and "width" of the result are those of the augmented image.
            white_level: see :func:`densesiam_d2.image_io.read_image`.

        Raises:
            ValueError: an argument is out of its range.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT {image_format!r} is neither 'RGB' nor 'BGR'")
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.label_key = label_key
        self.label_map = label_table(label_map)
        self.ignore_label = ignore_label
        self.num_classes = num_classes
        self.crops = crops
        self.white_level = white_level
        logging.getLogger(__name__).info("Augmentations of %s: %s", label_key or "images", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, dataset_names: Sequence[str] | None = None):
        """Read the config.

        Args:
            cfg: a config.
            is_train: whether to augment.
            dataset_names: names of the datasets; by default all of DATASETS.TRAIN or of DATASETS.TEST.
        """
        names = dataset_names or (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)
        label_map = _common_metadata(names, "label_map")
        ignore_label = _common_metadata(names, "ignore_label")
        classes = _common_metadata(names, "stuff_classes")
        if is_train:
            head = cfg.MODEL.SEM_SEG_HEAD
            if ignore_label not in (None, head.IGNORE_VALUE):
                raise ValueError(f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {head.IGNORE_VALUE} is {ignore_label} in {names}")
            if classes is not None and len(classes) > head.NUM_CLASSES:
                raise ValueError(f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {head.NUM_CLASSES} is {len(classes)} in {names}")
        center_crop = 0 if is_train else cfg.TEST.CENTER_CROP_SIZE
        if is_train:
            augmentations = _build_train_augmentations(cfg)
        else:
            augmentations = [ResizeCenterCrop(center_crop)] if center_crop > 0 else build_augmentation(cfg, False)
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "label_key": "sem_seg" if is_train else "sem_seg_target" if center_crop > 0 else None,
            "label_map": label_map,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE if ignore_label is None else ignore_label,
            "num_classes": None if classes is None else len(classes),
            "crops": center_crop > 0,
            "white_level": cfg.INPUT.WHITE_LEVEL,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Read and augment one image and its label map.

        Args:
            dataset_dict: "file_name" and, if ``label_key`` is set, "sem_seg_file_name" or "annotations" with masks.

        Returns:
            The dict with "image": (3, H, W) uint8 in INPUT.FORMAT, the label map (H, W) int64 under its key, and
            "height" and "width" for the prediction.

        Raises:
            ValueError: a file cannot be read, sizes differ, or the label map has values that are no class.
        """
        dataset_dict = dict(dataset_dict)
        image = read_image(dataset_dict["file_name"], white_level=self.white_level)
        check_image_size(dataset_dict, image)  # also sets height and width
        if self.image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        label_file, annotations = (dataset_dict.pop(key, None) for key in ("sem_seg_file_name", "annotations"))
        if self.label_key is None:
            label = None
        elif label_file is None and annotations is not None:
            label = foreground_of(annotations, *image.shape[:2])
        elif label_file is None:
            raise ValueError(f"the dataset has no label map for {dataset_dict['file_name']}")
        else:
            label = read_class_map(
                label_file,
                dataset_dict["file_name"],
                image.shape[:2],
                label_map=self.label_map,
                num_classes=self.num_classes,
                ignore_label=self.ignore_label,
            )

        aug_input = T.AugInput(image, sem_seg=label)
        self.augmentations(aug_input)
        image = aug_input.image
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if label is not None:
            dataset_dict[self.label_key] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        if self.crops:
            dataset_dict["height"], dataset_dict["width"] = image.shape[:2]
        return dataset_dict


def _build_train_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Build resize, category-balanced crop, colour distortion and flip, in the order of detectron2's PointRend."""
    resize, *flip = build_augmentation(cfg, True)
    crop, color = [], []
    if cfg.INPUT.CROP.ENABLED:
        crop = [
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            )
        ]
    if cfg.INPUT.COLOR_AUG_SSD:
        color = [ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT)]
    return [resize, *crop, *color, *flip]


def _common_metadata(names: Sequence[str], key: str):
    """Return a metadata entry that is the same in all datasets, or None if no dataset has it."""
    values = {name: MetadataCatalog.get(name).get(key) for name in names}
    first = next(iter(values.values()), None)
    different = [name for name, value in values.items() if value != first]
    if different:
        raise ValueError(
            f"datasets used together need the same {key!r}: {next(iter(values))} and {different[0]} differ"
        )
    return first
