"""Datasets, augmentations, mappers and loaders. Importing this registers the built-in datasets."""

from densesiam_d2.image_io import IMAGE_SUFFIXES, UnreadableImageError, read_image, read_label

from .augmentation import RandomHorizontalFlip, RandomResizedCrop
from .color_augmentation import ColorJitter, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .datasets import datasets_root, register_all_datasets, register_sem_seg_folder
from .image_listing import load_image_folder, load_image_list
from .loader import build_two_view_train_loader
from .path_datasets import load_records, register_path_datasets
from .sample_sets import register_all_samples
from .two_view_mapper import TwoViewDatasetMapper

__all__ = [
    "IMAGE_SUFFIXES",
    "ColorJitter",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomSolarize",
    "TwoViewDatasetMapper",
    "UnreadableImageError",
    "build_two_view_train_loader",
    "load_image_folder",
    "load_image_list",
    "load_records",
    "read_image",
    "read_label",
    "register_all_datasets",
    "register_path_datasets",
    "register_sem_seg_folder",
]

register_all_datasets(datasets_root())
register_all_samples(datasets_root())
