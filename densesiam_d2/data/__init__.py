"""Datasets, augmentations, mappers and loaders. Importing this registers the built-in datasets."""

from densesiam_d2.image_io import IMAGE_SUFFIXES, UnreadableImageError, read_image, read_label

from .augmentation import (
    AntialiasedResize,
    AntialiasedResizeTransform,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeCenterCrop,
)
from .color_augmentation import ColorJitter, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .datasets import check_datasets, datasets_root, register_all_datasets, register_sem_seg_folder
from .image_listing import load_image_folder, load_image_list
from .loader import build_two_view_train_loader
from .path_datasets import load_records, register_path_datasets
from .sample_sets import register_all_samples
from .sem_seg_mapper import SemSegDatasetMapper
from .two_view_mapper import TwoViewDatasetMapper, collate_views

__all__ = [
    "IMAGE_SUFFIXES",
    "AntialiasedResize",
    "AntialiasedResizeTransform",
    "ColorJitter",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomSolarize",
    "ResizeCenterCrop",
    "SemSegDatasetMapper",
    "TwoViewDatasetMapper",
    "UnreadableImageError",
    "build_two_view_train_loader",
    "check_datasets",
    "collate_views",
    "datasets_root",
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
