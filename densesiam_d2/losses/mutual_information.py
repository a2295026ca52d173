"""The mutual information of the clusters of two views (IIC).

Shape shorthand: N images, K clusters, H,W pixels, T = 2 * radius + 1 displacements per axis.
"""

from sys import float_info

import torch
from torch.nn import functional as F

from densesiam_d2.layers import gather_with_gradient

__all__ = ["displaced_counts", "mutual_information_loss"]


def displaced_counts(p1: torch.Tensor, p2: torch.Tensor, mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Count how often two clusters meet in two aligned views, for each displacement of the pixels.

    Entry [a, b, i, j] is the sum, over all images and pixels, of the probability of cluster i in view 1 times that of
    cluster j in view 2, where the pixel of view 1 lies ``a - radius`` rows below and ``b - radius`` columns right of
    the pixel of view 2. Pixels that the mask excludes, or that lie outside the view, do not count.

    Args:
        p1, p2: (N, K, H, W) probabilities; pixel (y, x) of both shows the same point of the image.
        mask: (N, H, W) bool, the pixels that both views show.
        radius: largest displacement in each direction, in pixels.

    Returns:
        (T, T, K, K) float32. It is a convolution of view 1 with view 2 as kernel, by Fourier transforms of tiles: each
        tile of view 2 meets the part of view 1 that its displacements reach. The tiles' products are summed before the
        inverse transform, so its cost does not grow with the image. A transform of the whole image takes
        longer on a CPU (320 x 320, K = 27, radius 10, with gradients: 10.9 against 1.4 core-seconds for 2 images), and
        a convolution with a kernel as large as the image longer still.
    """
    mask, shifts = mask[:, None], 2 * radius + 1
    side = max(64, 1 << (4 * radius).bit_length())  # of the part of view 1; a power of two
    tile = side - 2 * radius
    below, right = (-length % tile for length in p1.shape[2:])
    with torch.autocast(p1.device.type, enabled=False):  # a sum over thousands of pixels is too much for half precision
        x1 = F.pad(p1.float() * mask, (radius, right + radius, radius, below + radius))
        x2 = F.pad(p2.float() * mask, (0, right, 0, below))
        f1, f2 = (  # (side * (side / 2 + 1) frequencies, K, N * tiles)
            torch.fft.rfft2(x.unfold(2, length, tile).unfold(3, length, tile), s=(side, side))
            .permute(4, 5, 1, 0, 2, 3)
            .flatten(3)
            .flatten(0, 1)
            for x, length in ((x1, side), (x2, tile))
        )
        products = (f1 @ f2.mH).permute(1, 2, 0).unflatten(2, (side, -1))
        counts = torch.fft.irfft2(products, s=(side, side))[..., :shifts, :shifts]
    return counts.permute(2, 3, 0, 1)


def mutual_information_loss(
    p1: torch.Tensor, p2: torch.Tensor, mask: torch.Tensor, radius: int = 10, marginal_weight: float = 1.0
) -> torch.Tensor:
    """Return minus the mutual information of the clusters of two views, averaged over all displacements.

    The joint distribution P of each displacement is made symmetric. With its marginals Pi and Pj, its loss is
    ``-sum P (ln P - w ln Pi - w ln Pj)``, w being ``marginal_weight``. The distributions are those of the images of all
    processes, and every process returns the same loss.

    Args:
        p1, p2, mask, radius: see :func:`displaced_counts`. Gradients flow into p1 and p2.
        marginal_weight: above 1 it favours clusters of equal size.

    Returns:
        Scalar. With a weight of 1 it lies between -ln K and 0. Displacements without a pair of pixels count as 0.

    Source: IIC, Sec. 3.3 (arXiv 1807.06653); xu-ji/IIC, code/utils/segmentation/IID_losses.py, for the "uncollapsed"
    form, which averages the information of the displacements instead of their distributions, and for the smallest
    probability.
    """
    counts = gather_with_gradient(displaced_counts(p1, p2, mask, radius)[None]).sum(dim=0)
    smallest = float_info.epsilon
    pairs = counts.sum(dim=(2, 3), keepdim=True)
    met = pairs > 0.5  # a whole number of pairs; without one, the counts are rounding errors of the transform
    joint = torch.where(met, counts, 0) / torch.where(met, pairs, 1)
    joint = (joint + joint.transpose(2, 3)) / 2
    marginal = joint.sum(dim=3)  # (T, T, K); symmetric, so the other marginal is the same
    log_marginal, joint = marginal.clamp(min=smallest).log(), joint.clamp(min=smallest)
    log_ratio = joint.log() - marginal_weight * (log_marginal[..., None] + log_marginal[..., None, :])
    return -(joint * log_ratio).sum(dim=(2, 3)).mean()
