"""detectron2's mapper of boxes and masks, with a check of the image file, for polygons and run-length encoded masks."""

from detectron2.data import DatasetMapper

from .image_io import check_ordinary_image

__all__ = ["DetectionDatasetMapper"]


class DetectionDatasetMapper(DatasetMapper):
    """A ``DatasetMapper`` that refuses files which detectron2's reader would read wrongly or block on.

    The annotations of each image decide the mask format. If all masks are polygons, they stay polygons, as in the
    published recipes. If a mask that is not of a crowd is run-length encoded, all masks of the image become bitmasks.
    If the model needs masks, annotations without a mask are left out; they get here only if DATASETS.ACCEPT allows it.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Check the file, then map it as detectron2 does.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableImageError: the file is not an ordinary image; the message names it.
        """
        check_ordinary_image(dataset_dict["file_name"])
        return super().__call__(dataset_dict)

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        configured = self.instance_mask_format
        if self.use_instance_mask:
            masked = [a for a in dataset_dict["annotations"] if a.get("segmentation")]
            dataset_dict["annotations"] = masked
            if any(isinstance(a["segmentation"], dict) for a in masked if not a.get("iscrowd")):
                self.instance_mask_format = "bitmask"
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        self.instance_mask_format = configured
