"""The colour operations of data/color_augmentation.py for a batch on any device, each image with its own amount.

Each function has the name of the worker's operation and equals it to within one grey level. Images are (N, 3, H, W)
float32 RGB with whole values in [0, 255], amounts (N,) float64 on the CPU. Results are neither rounded nor clipped;
:func:`apply_color_steps` does both after each step, as the worker does.
"""

import torch
from torch.nn import functional as F

__all__ = ["COLOR_OPERATIONS", "apply_color_steps"]

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601, as Pillow's conversion to "L"


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply images by a factor."""
    return images * _per_image(factor, images)


def shift_brightness(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Add ``shift`` times 255, in whole grey levels."""
    return images + _per_image((255 * shift).round(), images)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend images with their mean grey level: 0 gives plain grey, 1 the image."""
    mean = (_luma(images).round().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return torch.lerp(mean, images, _per_image(factor, images))


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend images with their grey version: 0 gives grey, 1 the image."""
    return torch.lerp(_luma(images), images, _per_image(factor, images))


def adjust_hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rotate the hue by ``shift`` turns.

    Hue and saturation are rounded to 256 steps in between, as in OpenCV: without that the results would differ from the
    worker's by up to three grey levels.

    Source: OpenCV, modules/imgproc/src/color_hsv.simd.hpp, for the whole numbers. Its vector code rounds down at the
    end, the rest of it to the nearest level.
    """
    pixels = images.int()
    red, green, blue = pixels.unbind(dim=1)
    value = pixels.amax(dim=1)
    spread = value - pixels.amin(dim=1)
    sixths = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    sixths = torch.where(value == red, green - blue, sixths)
    hue = _scaled(sixths, 256 / 6, spread) + (shift * 256).round().int().to(images.device).view(-1, 1, 1)
    hue = (hue % 256) * (6 / 255)  # OpenCV divides a turn into 256 steps, and turns back with 255
    saturation = _scaled(spread, 255, value) / 255
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1)))
    return (torch.stack(channels, dim=1) + 1e-4).floor()  # 1e-4: whole numbers stay, in spite of rounding errors


def to_grayscale(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    """Return the grey version of images."""
    return _luma(images).expand_as(images)


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur images with a Gaussian of ``sigma`` pixels, cut off at three sigma.

    Rows and columns are blurred by products with one matrix each, because each image has its own kernel.
    """
    rows, columns = (_blur_matrix(sigma, size).to(images)[:, None] for size in images.shape[2:])
    return rows @ images @ columns.mT


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert values that are at least ``threshold``."""
    return torch.where(images < _per_image(threshold, images), images, 255 - images)


# The number of an operation in the steps of a view is its place here.
COLOR_OPERATIONS = (
    adjust_brightness,
    shift_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
    to_grayscale,
    gaussian_blur,
    solarize,
)


@torch.no_grad()
def apply_color_steps(images: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Change the colours of each image by its own sequence of steps, rounded and clipped to [0, 255] after each.

    Args:
        images: (N, 3, H, W) uint8 RGB, on any device; they are not changed.
        steps: (N, S, 2) float64: the place of an operation in COLOR_OPERATIONS, and its amount. Places below 0 mean no
            change.

    Returns:
        (N, 3, H, W) uint8, in the memory order of ``images``.
    """
    images, steps = images.clone(), steps.cpu()
    with torch.autocast(images.device.type, enabled=False):  # bf16 and fp16 are too coarse for 256 grey levels
        for numbers, amounts in zip(steps[..., 0].unbind(1), steps[..., 1].unbind(1), strict=True):
            for number, operation in enumerate(COLOR_OPERATIONS):
                chosen = (numbers == number).nonzero()[:, 0]
                if len(chosen):
                    rows = chosen.to(images.device, non_blocking=True)
                    changed = operation(images[rows].float(), amounts[chosen])
                    images[rows] = changed.round().clamp_(0, 255).to(torch.uint8)
    return images


def _per_image(amount: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return amount.to(images).view(-1, 1, 1, 1)


def _luma(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _scaled(numerator: torch.Tensor, factor: float, denominator: torch.Tensor) -> torch.Tensor:
    """Return ``factor * numerator / denominator`` of whole numbers, rounded, by a table of 12-bit fractions."""
    table = (factor * 4096 / torch.arange(1, 256, dtype=torch.float64)).round().int()
    table = F.pad(table, (1, 0)).to(denominator.device, non_blocking=True)
    return (numerator * table[denominator] + 2048) >> 12


def _blur_matrix(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """Return (N, size, size): row i holds the weights of the pixels that make pixel i; border pixels are repeated."""
    reach = (3 * sigma).ceil()
    offsets = torch.arange(-int(reach.max()), int(reach.max()) + 1)
    kernels = torch.exp(-((offsets / sigma[:, None]) ** 2) / 2) * (offsets.abs() <= reach[:, None])
    kernels /= kernels.sum(dim=1, keepdim=True)
    sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)  # (size, number of offsets)
    return torch.einsum("nk,ikj->nij", kernels.float(), F.one_hot(sources, size).float())
