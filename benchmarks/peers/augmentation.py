"""Two views of a file the way other libraries make them: SimSiam's recipe in each library's own manner.

Each function returns a callable that takes the name of a file and returns two views. Peers are imported when asked for.
"""

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

__all__ = ["albumentations_views", "lightly_views", "torchvision_views"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _open(name: str) -> Image.Image:
    with Image.open(name) as image:
        return image.convert("RGB")


def lightly_views():
    """Lightly's SimSiamTransform as it comes, with MoCo's strength of jitter and blur."""
    from lightly.transforms import SimSiamTransform

    transform = SimSiamTransform(
        input_size=224, cj_strength=1.0, cj_bright=0.4, cj_contrast=0.4, cj_sat=0.4, cj_hue=0.1, sigmas=(0.1, 2.0)
    )
    return lambda name: transform(_open(name))


def torchvision_views(crops_only: bool = False):
    """The recipe of the MoCo and SimSiam repositories, or its crops: torchvision's first transforms on PIL images."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=np.random.uniform(0.1, 2.0)))

    geometric = [T.RandomResizedCrop(224, scale=(0.2, 1.0)), T.RandomHorizontalFlip()]
    colors = [
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([blur], p=0.5),
    ]
    images = T.Compose(geometric if crops_only else geometric + colors)
    tensors = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])

    def views(name: str, as_images: bool = False) -> list:
        image = _open(name)
        drawn = [images(image), images(image)]
        return drawn if as_images else [tensors(view) for view in drawn]

    return views


def albumentations_views():
    """The same recipe in albumentations, whose resize does not smooth before it shrinks."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    transform = A.Compose(
        [
            A.RandomResizedCrop(size=(224, 224), scale=(0.2, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(sigma_limit=(0.1, 2.0), blur_limit=0, p=0.5),
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )

    def views(name: str) -> list[torch.Tensor]:
        image = cv2.imread(name, cv2.IMREAD_COLOR_RGB)
        return [transform(image=image)["image"] for _ in range(2)]

    return views
