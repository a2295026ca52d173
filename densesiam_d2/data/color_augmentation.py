"""The colour augmentations of self-supervised learning: each draws random amounts and returns a fixed transform.

Images are (H, W, 3) uint8 in RGB order. The operations equal Pillow's to within two grey levels (hue: a few more; blurs
are true Gaussians, Pillow's are made of boxes and differ by up to 14) and take a fifth to a tenth of its time. ``dst``
of an operation is an image to write the result to; it may be the input.

Constructors check only what would otherwise give wrong views without an error; ``check_config`` checks all config keys.
"""

import math

import cv2
import numpy as np
from detectron2.data import transforms as T

from densesiam_d2.layers.batch_colors import LUMA

__all__ = [
    "ColorJitter",
    "ColorSteps",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomSolarize",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "shift_brightness",
    "solarize",
    "to_grayscale",
]

_IDENTITY, _GREY = np.eye(3), np.array(LUMA)


def adjust_brightness(image: np.ndarray, factor: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Multiply an (H, W, 3) uint8 image by a factor >= 0."""
    return cv2.convertScaleAbs(image, dst, alpha=factor)


def shift_brightness(image: np.ndarray, shift: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Add ``shift`` times 255, in whole grey levels, to an (H, W, 3) uint8 image, and clip to [0, 255]."""
    levels = round(255 * shift)
    return cv2.add(image, (levels, levels, levels, 0), dst)


def adjust_contrast(image: np.ndarray, factor: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Blend an (H, W, 3) uint8 RGB image with its mean grey level: 0 gives plain grey, 1 the image."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor), dst)


def adjust_saturation(image: np.ndarray, factor: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Blend an (H, W, 3) uint8 RGB image with its grey version: 0 gives grey, 1 the image."""
    return cv2.transform(image, factor * _IDENTITY + (1 - factor) * _GREY, dst)


def adjust_hue(image: np.ndarray, shift: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Rotate the hue of an (H, W, 3) uint8 RGB image by ``shift`` turns, in [-0.5, 0.5]."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL, dst)
    row = np.zeros(hsv.shape[1:], np.uint8)  # adding whole rows takes half the time of adding to every third value
    row[:, 0] = round(shift * 256) % 256  # a full turn is 256, so uint8 wraps around as the hue does
    hsv += row
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def to_grayscale(image: np.ndarray, dst: np.ndarray | None = None) -> np.ndarray:
    """Return the (H, W, 3) uint8 grey version of an RGB image."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst)


def gaussian_blur(image: np.ndarray, sigma: float, dst: np.ndarray | None = None) -> np.ndarray:
    """Blur an (H, W, 3) uint8 image with a Gaussian of ``sigma`` pixels, cut off at three sigma."""
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
    return cv2.sepFilter2D(image, -1, kernel, kernel, dst, borderType=cv2.BORDER_REPLICATE)


def solarize(image: np.ndarray, threshold: int = 128, dst: np.ndarray | None = None) -> np.ndarray:
    """Invert the values of a uint8 image that are at least ``threshold``."""
    values = np.arange(256)
    return cv2.LUT(image, np.where(values < threshold, values, 255 - values).astype(np.uint8), dst)


class ColorSteps(T.ColorTransform):
    """A sequence of the operations above; without steps, no change."""

    def __init__(self, *steps: tuple):
        """Store the steps: each an operation, followed by its arguments between image and ``dst``."""
        self.steps = steps

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.apply_in_place(img.copy())

    def apply_in_place(self, image: np.ndarray) -> np.ndarray:
        """Change an (H, W, 3) uint8 RGB image, and return it."""
        for operation, *amount in self.steps:
            image = operation(image, *amount, image)
        return image


class ColorJitter(T.Augmentation):
    """Change brightness, contrast, saturation and hue by random amounts, in random order or in this order.

    Source: torchvision ``ColorJitter``; the draw per operation is the released DenseSiam's (``densesiam/datasets``);
    additive brightness is BYOL's (google-deepmind/deepmind-research, ``byol/utils/augmentations.py``).
    """

    def __init__(
        self,
        strengths: tuple[float, float, float, float],
        prob: float = 0.8,
        independent: bool = False,
        random_order: bool = True,
        brightness: str = "multiply",
    ):
        """Check and store the amounts.

        Args:
            strengths: one number ``s`` each for brightness, contrast, saturation and hue. The factor of the first three
                is drawn from [1 - s, 1 + s], the shift of hue from [-s, s] turns. 0 leaves an operation out.
            prob: probability of the change.
            independent: decide for each operation by its own draw, instead of once for all four.
            random_order: draw the order of the operations.
            brightness: "multiply" the image by the factor, or "add" a shift drawn from [-s, s] to the image, whose
                values count as [0, 1].

        Raises:
            ValueError: a strength or ``prob`` is out of range, or ``brightness`` is unknown.
        """
        super().__init__()
        if len(strengths) != 4 or min(strengths) < 0 or max(strengths[:3]) > 1 or strengths[3] > 0.5:
            raise ValueError(f"strengths {tuple(strengths)} must be three numbers in [0, 1] and one in [0, 0.5]")
        if brightness not in ("multiply", "add"):
            raise ValueError(f"brightness {brightness!r} is neither 'multiply' nor 'add'")
        _check_prob(prob)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if not self.independent and np.random.rand() >= self.prob:
            return ColorSteps()
        # Each operation with the amount that leaves the image as it is.
        brightness = (adjust_brightness, 1.0) if self.brightness == "multiply" else (shift_brightness, 0.0)
        operations = (brightness, (adjust_contrast, 1.0), (adjust_saturation, 1.0), (adjust_hue, 0.0))
        places, amounts, chances = np.random.rand(3, 4).tolist()
        steps = []
        for i in sorted(range(4), key=places.__getitem__) if self.random_order else range(4):
            if self.strengths[i] > 0 and not (self.independent and chances[i] >= self.prob):
                operation, neutral = operations[i]
                steps.append((operation, neutral + (2 * amounts[i] - 1) * self.strengths[i]))
        return ColorSteps(*steps)


class RandomGrayscale(T.Augmentation):
    """Turn an image grey with probability ``prob``."""

    def __init__(self, prob: float = 0.2):
        """Store the probability."""
        super().__init__()
        _check_prob(prob)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return ColorSteps((to_grayscale,)) if np.random.rand() < self.prob else ColorSteps()


class RandomGaussianBlur(T.Augmentation):
    """Blur an image with probability ``prob`` by a sigma drawn uniformly from a range, in pixels.

    If the drawn sigma is negative, its absolute value is used, as in Pillow. The released segmentation recipe draws it
    from [-1.8, 0.1].
    """

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), prob: float = 0.5):
        """Store the range and the probability."""
        super().__init__()
        _check_prob(prob)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if np.random.rand() >= self.prob:
            return ColorSteps()
        low, high = self.sigma
        sigma = abs(low + np.random.rand() * (high - low))
        return ColorSteps((gaussian_blur, sigma)) if sigma > 0 else ColorSteps()


class RandomSolarize(T.Augmentation):
    """Invert the values of an image that are at least 128, with probability ``prob``."""

    def __init__(self, prob: float = 0.2):
        """Store the probability."""
        super().__init__()
        _check_prob(prob)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return ColorSteps((solarize, 128)) if np.random.rand() < self.prob else ColorSteps()


def _check_prob(prob: float) -> None:
    if not 0 <= prob <= 1:
        raise ValueError(f"prob {prob} is not a probability in [0, 1]")
