"""Parts shared by DenseSiam and its segmentor: heads at the common points (PixSim) and regions (RegionSim).

Shape shorthand: N images, C feature channels, D embedding, M regions, h,w feature cells, S side of the grid of points.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import nn

from densesiam_d2.geometry import overlap_grids, sample
from densesiam_d2.layers import ProjectorPredictor
from densesiam_d2.losses import negative_cosine, pool_regions, region_infonce

__all__ = ["EncodedView", "RegionSim", "count_winners", "encoded_views", "project_points"]


class EncodedView(NamedTuple):
    """A view's feature map, and the points that both views show (the common points)."""

    f: torch.Tensor  # (N, C, h, w)
    grid: torch.Tensor  # (N, S, S, 2), positions of the common points in the view
    s: torch.Tensor  # (N, C, S, S), f at the common points


def encoded_views(
    f1: torch.Tensor,
    f2: torch.Tensor,
    boxes1: torch.Tensor,
    boxes2: torch.Tensor,
    grid_size: int,
    *,
    whole_cells: bool = False,
) -> tuple[EncodedView, EncodedView, torch.Tensor]:
    """Sample the feature maps of two views at their common points (GridSample).

    Args:
        f1, f2: (N, C, h, w).
        boxes1, boxes2: (N, 4) view boxes.
        grid_size: S.
        whole_cells: take whole cells of view 2 instead of the exact overlap, see :func:`overlap_grids`.

    Returns:
        Both views, and (N,) bool: whether the two views of each image overlap.
    """
    cells = f2.shape[-1] if whole_cells else None
    grid1, grid2, valid = overlap_grids(boxes1, boxes2, grid_size, cells=cells)
    return EncodedView(f1, grid1, sample(f1, grid1)), EncodedView(f2, grid2, sample(f2, grid2)), valid


def project_points(
    heads: ProjectorPredictor, view: EncodedView, *, sample_features: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return projection and prediction of one view at the common points.

    Args:
        heads: a module with ``projector`` and ``predictor``.
        view: the encoded view.
        sample_features: True applies the heads to the sampled features; False samples the outputs of the heads.

    Returns:
        z and p, (N, D, S, S) each.
    """
    if sample_features:
        z = heads.projector(view.s)
        return z, heads.predictor(z)
    z = heads.projector(view.f)  # (N, D, h, w)
    return sample(z, view.grid), sample(heads.predictor(z), view.grid)


class RegionSim(ProjectorPredictor):
    """Region consistency: pool the common points into regions, project, predict, compare.

    Source: DenseSiam (arXiv 2203.11075), "RegionSim"; densesiam/models/architectures/densesiam.py in
    ZwwWayne/DenseSiam for "infonce", whose gradient also flows into the targets.
    """

    def __init__(
        self,
        in_dim: int,
        proj_dims: Sequence[int],
        pred_dim: int,
        norm: Callable[[int], nn.Module],
        *,
        loss: str = "infonce",
        temperature: float = 0.1,
        stop_gradient: bool = False,
    ):
        """Build the heads.

        Args:
            in_dim, proj_dims, pred_dim, norm: see :class:`ProjectorPredictor`.
            loss: "infonce" or "cosine".
            temperature: temperature of "infonce".
            stop_gradient: whether "infonce" stops the gradient through its targets; "cosine" always stops it.
        """
        super().__init__(in_dim, proj_dims, pred_dim, norm)
        self.loss = loss
        self.temperature = temperature
        self.stop_gradient = stop_gradient

    @classmethod
    def of(cls, cfg: CfgNode, in_dim: int) -> "RegionSim":
        """Build RegionSim from MODEL.DENSESIAM.REGION and MODEL.SSL.NORM, for features of ``in_dim`` channels."""
        keys = cfg.MODEL.DENSESIAM.REGION
        return cls(
            in_dim,
            keys.PROJ_DIMS,
            keys.PRED_DIM,
            partial(get_norm, cfg.MODEL.SSL.NORM),
            loss=keys.LOSS,
            temperature=keys.TEMPERATURE,
            stop_gradient=keys.STOP_GRADIENT,
        )

    def forward(self, f1, f2, z1, z2, valid) -> torch.Tensor:
        """Return the loss of two views, a scalar.

        Args:
            f1, f2: (N, C, S, S) features at the common points.
            z1, z2: (N, M, S, S) logits of the soft region masks.
            valid: (N,) bool, the images to use.
        """
        with torch.autocast(f1.device.type, enabled=False):  # sums over a whole view can exceed fp16's 65,504
            zr1, zr2 = self.project(f1, z1), self.project(f2, z2)  # (N, D, M, 1)
            pr1, pr2 = self.predictor(zr1), self.predictor(zr2)
        if self.loss == "cosine":
            return (negative_cosine(pr1, zr2, valid) + negative_cosine(pr2, zr1, valid)) / 2
        if self.stop_gradient:
            zr1, zr2 = zr1.detach(), zr2.detach()
        contrast = partial(region_infonce, temperature=self.temperature, valid=valid)
        return (contrast(pr1, zr2) + contrast(pr2, zr1)) / 2

    def project(self, f: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the projections (N, D, M, 1) of features (N, C, S, S) pooled under masks z (N, M, S, S).

        The projector's first convolution and the pooling are both linear, so their order does not change the result;
        the cheaper order is used.
        """
        if z.shape[2:].numel() >= z.shape[1]:
            return self.projector(pool_regions(f, z))
        return self.projector[1:](pool_regions(self.projector[0](f), z))


def count_winners(labels: torch.Tensor) -> torch.Tensor:
    """Return how many different labels there are in a map of clusters of any shape, as a 0-dim tensor."""
    return (torch.bincount(labels.flatten()) > 0).sum()
