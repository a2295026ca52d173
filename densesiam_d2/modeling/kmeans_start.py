"""Start a head of clusters from k-means of the features that the backbone has at the start.

Shape shorthand: N images, B channels of all backbone features together, C decoder channels, K clusters, h,w cells.
"""

import logging

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import MiniBatchKMeans, world_size
from densesiam_d2.modeling.clustering import random_points

__all__ = ["KMeansStartHook", "start_from_kmeans"]

POINTS_PER_IMAGE = 200
ITERATIONS = 50
# The logits of the start are negative squared distances, for features of mean square length 1, divided by this.
TEMPERATURE = 0.1


class KMeansStartHook(HookBase):
    """Before the first iteration, set the decoder and the classifiers of a segmentor; they are trained afterwards.

    The points are random cells of the second view of every image, of the backbone in evaluation mode.
    """

    def __init__(self, model: nn.Module, total_batch: int):
        """Store the model without DDP, whose head is a ``PseudoLabelSemSegHead``, and the images per batch."""
        self._model, self._total_batch = model, total_batch

    def before_step(self) -> None:
        """Set the weights, if this is the first iteration."""
        if self.trainer.iter:
            return
        model, loader = self._model, self.trainer.data_loader
        model.eval()
        points = random_points(self._features, loader, self._total_batch, POINTS_PER_IMAGE)
        model.train()
        start_from_kmeans(model.sem_seg_head, points, loader.batches.seed % 2**31, model.device)
        logging.getLogger(__name__).info("The clusters start from k-means of %d points", len(points))

    @torch.no_grad()
    def _features(self, batch: dict) -> torch.Tensor:
        """Return the features of view 2, (N, B, h, w)."""
        x = self._model.preprocess_views(batch)[1]
        return concatenated(self._model.sem_seg_head.decoder, self._model.backbone(x))


def concatenated(decoder: nn.Module, features: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what a ``TopDownDecoder`` sums up, before its convolutions: (N, B, h, w), coarse features first."""
    x = None
    for name in decoder.in_features:
        f = F.normalize(features[name].float(), dim=1)
        if x is not None:
            f = torch.cat([F.interpolate(x, size=f.shape[-2:], mode="bilinear", align_corners=False), f], dim=1)
        x = f
    return x


@torch.no_grad()
def start_from_kmeans(head: nn.Module, points: torch.Tensor, seed: int, device: torch.device) -> None:
    """Make the decoder a principal component analysis of points, and each classifier k-means of its output.

    The main process computes; the others get its weights, because rounding may differ between machines.

    Args:
        head: a ``PseudoLabelSemSegHead`` whose projectors are a single convolution.
        points: (n, B) on the CPU; only those of the main process are read.
        seed: of k-means.
        device: where the head is.

    Raises:
        ValueError: the decoder has more channels than the features together, or there are fewer points than clusters.
    """
    laterals = [head.decoder.lateral[name] for name in head.decoder.in_features]
    dim, num = laterals[0].out_channels, sum(lateral.in_channels for lateral in laterals)
    if dim > num:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.CONVS_DIM {dim} is more than the {num} channels of IN_FEATURES: lower it")
    y = _set_to_principal_axes(laterals, points) if comm.is_main_process() else points
    lasts = [classifier.projector[-1] for classifier in (head.classifier, head.aux_classifier) if classifier]
    for last in lasts:
        clustering = MiniBatchKMeans(last.out_channels, iterations=ITERATIONS, seed=seed, device=device)
        clustering.fit(y, dim)
        last.weight.copy_(2 / TEMPERATURE * clustering.centroids[:, :, None, None])
        last.bias.copy_(-clustering.centroids.square().sum(dim=1) / TEMPERATURE)
    if world_size() > 1:
        for layer in [*laterals, *lasts]:
            dist.broadcast(layer.weight, src=0)
            dist.broadcast(layer.bias, src=0)


def _set_to_principal_axes(laterals: list[nn.Conv2d], points: torch.Tensor) -> torch.Tensor:
    """Make convolutions the projection to the first principal axes, and return the points' projections (n, C).

    Args:
        laterals: convolutions of size 1 to C channels, whose outputs are summed up; their inputs are B channels
            together.
        points: (n, B).
    """
    mean, dim = points.mean(dim=0), laterals[0].out_channels
    points = points - mean
    covariance = sum(block.T @ block for block in map(torch.Tensor.double, points.split(10_000)))
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -dim:].float()  # (B, C)
    y = points @ axes
    scale = y.square().sum(dim=1).mean().sqrt()
    axes /= scale
    first = 0
    for lateral in laterals:
        rows = slice(first, first := first + lateral.in_channels)
        lateral.weight.copy_(axes[rows].T[:, :, None, None])
        lateral.bias.copy_(-(mean[rows] @ axes[rows]))
    return y / scale
