"""The same views by the same library calls in one bare function: the time left when nothing can be chosen."""

import math
import random
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["bare_segmentation_views", "bare_views"]

LUMA, IDENTITY = np.array([0.299, 0.587, 0.114]), np.eye(3)


def bare_views(name: str) -> torch.Tensor:
    """Return two views (2, 224, 224, 3) uint8 of a JPEG file."""
    image = _decode(name)
    height, width = image.shape[:2]
    views = []
    for _ in range(2):
        while True:
            area, aspect = height * width * random.uniform(0.2, 1), math.exp(random.uniform(-0.28768, 0.28768))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                break
        y, x = random.randint(0, height - h), random.randint(0, width - w)
        view = _maybe_flip(_resize(image[y : y + h, x : x + w], 224, 224))
        _recolor(view, random.sample(JITTER, 4) if random.random() < 0.8 else [], 0.4)
        views.append(view)
    return torch.from_numpy(np.stack(views))


def bare_segmentation_views(color_first: bool) -> Callable[[str], torch.Tensor]:
    """Return a callable: file name -> two views (2, 320, 320, 3) uint8 for unsupervised segmentation.

    Args:
        color_first: change colours of the central square at 640 pixels, before the crop; otherwise those of the views.
    """

    def views(name: str) -> torch.Tensor:
        image = _decode(name)
        height, width = image.shape[:2]
        if color_first:
            height, width = (640, 640 * width // height) if height <= width else (640 * height // width, 640)
            image = _resize(image, height, width)
        side = min(height, width)
        y, x = (height - side) // 2, (width - side) // 2
        image = image[y : y + side, x : x + side]
        images = np.stack([image, image]) if color_first else [image, image]
        if color_first:
            for copy in images:
                _recolor(copy, _independent_jitter(), 0.3)
        size = round(side * random.uniform(0.5, 1))
        y, x = random.randint(0, side - size), random.randint(0, side - size)
        first = _maybe_flip(_resize(images[0][y : y + size, x : x + size], 320, 320))
        pair = np.stack([first, _resize(images[1], 320, 320)])
        if not color_first:
            for view in pair:
                _recolor(view, _independent_jitter(), 0.3)
        return torch.from_numpy(pair)

    return views


def _decode(name: str) -> np.ndarray:
    return cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR_RGB)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    return F.interpolate(planes, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)[0].numpy()


def _maybe_flip(view: np.ndarray) -> np.ndarray:
    return cv2.flip(view, 1) if random.random() < 0.5 else view


def _recolor(view: np.ndarray, jitter: list[Callable], strength: float) -> None:
    for operation in jitter:
        operation(view, strength)
    if random.random() < 0.2:
        cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, view)
    if random.random() < 0.5:
        sigma = random.uniform(0.1, 2.0)
        kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
        cv2.sepFilter2D(view, -1, kernel, kernel, view, borderType=cv2.BORDER_REPLICATE)


def _independent_jitter() -> list[Callable]:
    return [operation for operation in random.sample(JITTER, 4) if random.random() < 0.8]


def _brightness(view: np.ndarray, strength: float) -> None:
    cv2.convertScaleAbs(view, view, alpha=random.uniform(1 - strength, 1 + strength))


def _contrast(view: np.ndarray, strength: float) -> None:
    factor = random.uniform(1 - strength, 1 + strength)
    mean = cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0]
    cv2.addWeighted(view, factor, view, 0, mean * (1 - factor), view)


def _saturation(view: np.ndarray, strength: float) -> None:
    factor = random.uniform(1 - strength, 1 + strength)
    cv2.transform(view, factor * IDENTITY + (1 - factor) * LUMA, view)


def _hue(view: np.ndarray, strength: float) -> None:
    cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL, view)
    row = np.zeros(view.shape[1:], np.uint8)
    row[:, 0] = round(random.uniform(-0.1, 0.1) * 256) % 256  # of both recipes
    view += row
    cv2.cvtColor(view, cv2.COLOR_HSV2RGB_FULL, view)


JITTER = (_brightness, _contrast, _saturation, _hue)
