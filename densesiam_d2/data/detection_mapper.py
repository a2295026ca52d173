"""detectron2's mapper of boxes and masks, behind a check of the image file, for masks of any kind."""

from detectron2.data import DatasetMapper

from .image_io import check_ordinary_image

__all__ = ["DetectionDatasetMapper"]


class DetectionDatasetMapper(DatasetMapper):
    """A ``DatasetMapper`` that refuses files which detectron2's reader would see wrongly or wait for.

    Masks are read as they come: where all masks of an image are polygons they stay polygons, as in the published
    recipes; where one that counts (no crowd) is run-length encoded, all of that image become bitmasks. With masks,
    annotations without one are left out (DATASETS.ACCEPT has allowed them).
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Check the file, then do what detectron2 does.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableImageError: the file is no ordinary image; the message names it.
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
