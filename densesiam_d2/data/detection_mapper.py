"""detectron2's mapper of boxes and masks, with this package's reader, for polygons and run-length encoded masks."""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size, transform_proposals

from densesiam_d2.data.mask_lookup import MaskLookup
from densesiam_d2.image_io import WHITE_LEVEL, read_image, read_label

__all__ = ["DetectionDatasetMapper"]

LOOKUP_FROM = 10  # masks of an image; for 8 a lookup takes as long as to transform each


class DetectionDatasetMapper(DatasetMapper):
    """A ``DatasetMapper`` that reads images as pretraining does, so that all parts of the package see the same pixels.

    detectron2's reader waits for pipes, fetches addresses, turns 16-bit images white and, with some versions of Pillow,
    turns TIFF files twice.

    The annotations of each image decide the mask format. If all masks are polygons, they stay polygons, as in the
    published recipes. If a mask that is not of a crowd is run-length encoded, all masks of the image become bitmasks.
    If the model needs masks, annotations without a mask are left out; they get here only if DATASETS.ACCEPT allows it.
    """

    @configurable
    def __init__(self, *args, white_level: int = WHITE_LEVEL, **kwargs):
        """Store the settings.

        Args:
            white_level: see :func:`densesiam_d2.image_io.read_image`.
            args, kwargs: arguments of ``DatasetMapper``.
        """
        super().__init__(*args, **kwargs)
        self.white_level = white_level

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {**super().from_config(cfg, is_train), "white_level": cfg.INPUT.get("WHITE_LEVEL", WHITE_LEVEL)}

    def __call__(self, dataset_dict: dict) -> dict:
        """Read one image, and augment it and its annotations as detectron2 does.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableImageError: the file is damaged or no image; the message names it.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_image(dataset_dict["file_name"], white_level=self.white_level)
        check_image_size(dataset_dict, image)
        label_file = dataset_dict.pop("sem_seg_file_name", None)  # of panoptic models
        label = read_label(label_file) if label_file and self.is_train else None
        if self.image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        aug_input = T.AugInput(image, sem_seg=label)
        transforms = self.augmentations(aug_input)
        shape = aug_input.image.shape[:2]
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if label is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            transform_proposals(dataset_dict, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, shape)
        return dataset_dict

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        configured = self.instance_mask_format, self.recompute_boxes
        if self.use_instance_mask:
            masked = [a for a in dataset_dict["annotations"] if a.get("segmentation")]
            dataset_dict["annotations"] = masked
            if any(isinstance(a["segmentation"], dict) for a in masked if not a.get("iscrowd")):
                self.instance_mask_format = "bitmask"
            # detectron2 takes boxes anew from cropped masks, and fails where there is none.
            self.recompute_boxes = self.recompute_boxes and any(not a.get("iscrowd") for a in masked)
        if self.instance_mask_format == "bitmask" and len(dataset_dict["annotations"]) >= LOOKUP_FROM:
            transforms = MaskLookup(transforms)
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        self.instance_mask_format, self.recompute_boxes = configured
