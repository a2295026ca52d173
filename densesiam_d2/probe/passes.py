"""What every probe needs for its passes over images: square images and crops, a progress bar, named scores."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T
from tqdm import tqdm

from densesiam_d2.data.augmentation import AntialiasedResize
from densesiam_d2.data.order import seeded

__all__ = ["Images", "augmented", "bar", "named_scores", "resize_labels", "squared"]

Images = Sequence[tuple[np.ndarray, np.ndarray]]  # (H, W, 3) uint8 RGB, and labels (H, W) uint8


def squared(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8 resized to (side, side, 3); its aspect ratio is lost."""
    return AntialiasedResize((side, side)).get_transform(image).apply_image(image)


def resize_labels(labels: np.ndarray, side: int) -> np.ndarray:
    """Return labels (H, W) uint8 resized to (side, side) by nearest neighbour."""
    return cv2.resize(labels, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)


def augmented(
    image: np.ndarray, labels: np.ndarray, augmentations: Sequence[T.Augmentation], place: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Change an image and its labels together, by random amounts that follow from ``place`` alone.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; resized by nearest neighbour.
        augmentations: applied in this order.
        place: numbers that no other draw has, such as seed, epoch and index of the image.

    Returns:
        Image and labels of one size.
    """
    both = T.AugInput(image, sem_seg=labels)
    with seeded(int(np.random.SeedSequence(place).generate_state(1)[0])):
        T.AugmentationList(augmentations)(both)
    return both.image, both.sem_seg


def named_scores(result: Mapping, classes: Sequence[str]) -> dict:
    """Return "mIoU", "pACC" and, with the names of the classes, "IoU" of :func:`..evaluation.confusion.scores`."""
    by_class = dict(zip(classes, map(float, result["IoU"]), strict=True))
    return {"mIoU": result["mIoU"], "pACC": result["pACC"], "IoU": by_class}


def bar(indices: Sequence[int], task: str) -> tqdm:
    """Return an iterator over indices of images with a progress bar, which a log file does not get."""
    return tqdm(indices, desc=task, unit=" images", disable=None, leave=False)
