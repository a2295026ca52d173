"""Colours of label maps. All images are (H, W, 3) uint8 RGB."""

import cv2
import numpy as np
from matplotlib.colors import hsv_to_rgb

__all__ = ["colorize", "overlay", "palette"]


def palette(num: int) -> np.ndarray:
    """Return (num, 3) uint8 RGB colours; colour i is the same for every num, and neighbours differ in hue and value."""
    i = np.arange(num)
    hue = (i * 0.618034) % 1  # golden-ratio steps keep each hue far from the hues shortly before it
    saturation = np.array([0.8, 0.5, 1.0])[i % 3]
    value = np.array([0.9, 1.0, 0.6, 0.8])[i % 4]
    return np.rint(255 * hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))).astype(np.uint8)


def colorize(labels: np.ndarray, num: int, colors: np.ndarray | None = None) -> np.ndarray:
    """Return the colour of each label.

    Args:
        labels: (H, W) ids.
        num: number of ids; pixels with another id (such as an ignore label) become black.
        colors: (num, 3) uint8 RGB; :func:`palette` if None.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    colors = palette(num) if colors is None else colors
    table = np.concatenate([colors, np.zeros((1, 3), np.uint8)])
    return table[np.where((labels >= 0) & (labels < num), labels, num)]


def overlay(image: np.ndarray, labels: np.ndarray, alpha: float, colors: np.ndarray) -> np.ndarray:
    """Return a blend of an image and the colours of its labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) ids.
        alpha: weight of the colours, in [0, 1].
        colors: (num, 3) uint8 RGB.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return cv2.addWeighted(image, 1 - alpha, colorize(labels, len(colors), colors), alpha, 0)
