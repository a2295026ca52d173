"""The mutual information of the clusters of two views (IIC).

Shape shorthand: N images, K clusters, H,W pixels, T = 2 * radius + 1 displacements per axis.
"""

from sys import float_info

import torch

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
        (T, T, K, K) float32. It is a convolution of view 1 with view 2 as kernel. Fourier transforms compute it. With a
        kernel as large as the image, a convolution takes 4 to 6 times as long on a CPU (radius 10, with gradients).
    """
    mask, side = mask[:, None], 2 * radius + 1
    # Zeros beside the maps, so that no pixel meets one beyond the opposite border.
    size = [max(length + radius, side) for length in p1.shape[2:]]
    with torch.autocast(p1.device.type, enabled=False):  # a sum over thousands of pixels is too much for half precision
        f1, f2 = (torch.fft.rfft2(p.float() * mask, s=size).flatten(2) for p in (p1, p2))  # (N, K, F) frequencies
        products = f1.permute(2, 1, 0) @ f2.permute(2, 0, 1).conj()  # (F, K, K), summed over the images
        counts = torch.fft.irfft2(products.unflatten(0, (size[0], -1)), s=size, dim=(0, 1))
    return counts.roll((radius, radius), dims=(0, 1))[:side, :side]


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
        Scalar. With a weight of 1 it lies between -ln K and 0, and it is nearly 0 if the mask excludes all pixels.

    Source: IIC, Sec. 3.3 (arXiv 1807.06653); xu-ji/IIC, code/utils/segmentation/IID_losses.py, for the "uncollapsed"
    form, which averages the information of the displacements instead of their distributions, and for the smallest
    probability.
    """
    counts = gather_with_gradient(displaced_counts(p1, p2, mask, radius)[None]).sum(dim=0)
    smallest = float_info.epsilon
    joint = counts / counts.sum(dim=(2, 3), keepdim=True).clamp(min=smallest)
    joint = (joint + joint.transpose(2, 3)) / 2
    marginal = joint.sum(dim=3)  # (T, T, K); symmetric, so the other marginal is the same
    log_marginal, joint = marginal.clamp(min=smallest).log(), joint.clamp(min=smallest)
    log_ratio = joint.log() - marginal_weight * (log_marginal[..., None] + log_marginal[..., None, :])
    return -(joint * log_ratio).sum(dim=(2, 3)).mean()
