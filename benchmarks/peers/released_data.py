"""The released unsupervised segmentation's pipeline, written afresh from its description, for timing only.

Each image: short side to 640, centre crop, two copies with colours changed one operation at a time on PIL images, float
tensors, normalised. The first copy stays at 640 (the device crops it later), the second is resized to 320.
"""

import random

import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T
from torchvision.transforms import functional as F

__all__ = ["released_views"]


def released_views():
    """Return a callable: file name -> (3, 640, 640) and (3, 320, 320) float tensors."""
    crop = T.Compose([T.Resize(640), T.CenterCrop(640)])
    operations = [
        (F.adjust_brightness, 0.7, 1.3),
        (F.adjust_contrast, 0.7, 1.3),
        (F.adjust_saturation, 0.7, 1.3),
        (F.adjust_hue, -0.1, 0.1),
    ]
    tensors = T.Compose([T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def recolor(image: Image.Image) -> Image.Image:
        for operation, low, high in operations:
            if random.random() < 0.8:
                image = operation(image, random.uniform(low, high))
        if random.random() < 0.2:
            image = F.to_grayscale(image, 3)
        if random.random() < 0.5:
            # The released radius is 3.8 (p - 0.5) + 0.1 for p below 0.5, which Pillow squares.
            image = image.filter(ImageFilter.GaussianBlur(abs(3.8 * (random.random() * 0.5 - 0.5) + 0.1)))
        return image

    def views(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(name) as image:
            image = crop(image.convert("RGB"))
        second = recolor(image).resize((320, 320), Image.BILINEAR)
        return tensors(recolor(image)), tensors(second)

    return views
