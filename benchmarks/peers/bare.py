"""The same views by the same library calls in one bare function: the time left when nothing can be chosen."""

import math
import random

import cv2
import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["bare_views"]

LUMA, IDENTITY = np.array([0.299, 0.587, 0.114]), np.eye(3)


def bare_views(name: str) -> torch.Tensor:
    """Return two views (2, 224, 224, 3) uint8 of a JPEG file."""
    image = cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    views = []
    for _ in range(2):
        while True:
            area, aspect = height * width * random.uniform(0.2, 1), math.exp(random.uniform(-0.28768, 0.28768))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                break
        y, x = random.randint(0, height - h), random.randint(0, width - w)
        view = F.interpolate(planes[:, :, y : y + h, x : x + w], (224, 224), mode="bilinear", antialias=True)
        view = view.permute(0, 2, 3, 1)[0].numpy()
        if random.random() < 0.5:
            view = cv2.flip(view, 1)
        if random.random() < 0.8:
            for operation in random.sample((_brightness, _contrast, _saturation, _hue), 4):
                operation(view)
        if random.random() < 0.2:
            cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, view)
        if random.random() < 0.5:
            sigma = random.uniform(0.1, 2.0)
            kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
            cv2.sepFilter2D(view, -1, kernel, kernel, view, borderType=cv2.BORDER_REPLICATE)
        views.append(view)
    return torch.from_numpy(np.stack(views))


def _brightness(view: np.ndarray) -> None:
    cv2.convertScaleAbs(view, view, alpha=random.uniform(0.6, 1.4))


def _contrast(view: np.ndarray) -> None:
    factor, mean = random.uniform(0.6, 1.4), cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0]
    cv2.addWeighted(view, factor, view, 0, mean * (1 - factor), view)


def _saturation(view: np.ndarray) -> None:
    factor = random.uniform(0.6, 1.4)
    cv2.transform(view, factor * IDENTITY + (1 - factor) * LUMA, view)


def _hue(view: np.ndarray) -> None:
    cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL, view)
    view[:, :, 0] += np.uint8(round(random.uniform(-0.1, 0.1) * 256) % 256)
    cv2.cvtColor(view, cv2.COLOR_HSV2RGB_FULL, view)
