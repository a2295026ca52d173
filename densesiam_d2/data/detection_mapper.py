"""detectron2's mapper of boxes and masks, behind a check of the image file."""

from detectron2.data import DatasetMapper

from .image_io import check_ordinary_image

__all__ = ["DetectionDatasetMapper"]


class DetectionDatasetMapper(DatasetMapper):
    """A ``DatasetMapper`` that refuses files which detectron2's reader would see wrongly or wait for."""

    def __call__(self, dataset_dict: dict) -> dict:
        """Check the file, then do what detectron2 does.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableImageError: the file is no ordinary image; the message names it.
        """
        check_ordinary_image(dataset_dict["file_name"])
        return super().__call__(dataset_dict)
