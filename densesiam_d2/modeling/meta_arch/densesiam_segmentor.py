"""DenseSiam's unsupervised segmentation, as released (ECCV 2022, arXiv 2203.11075)."""

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine.train_loop import HookBase
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.geometry import overlap_boxes
from densesiam_d2.losses import balanced_logits, pseudo_label_loss, soft_cross_entropy, usage_loss
from densesiam_d2.modeling.consistency import EncodedView, RegionSim, count_winners, encoded_views, project_points
from densesiam_d2.modeling.kmeans_start import KMeansStartHook
from densesiam_d2.modeling.meta_arch.densesiam import DenseSiam
from densesiam_d2.modeling.meta_arch.segmentor import LabelFreeSegmentor

__all__ = ["DenseSiamSegmentor"]


@META_ARCH_REGISTRY.register()
class DenseSiamSegmentor(LabelFreeSegmentor):
    """DenseSiam whose projections are cluster logits: soft cross-entropy between views, regions, pseudo labels.

    Letters as in ``DenseSiam``, with K clusters instead of D. The config keys are those of MODEL.DENSESIAM (without
    those of its dense heads) and of MODEL.SEM_SEG_HEAD.

    Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam.
    """

    RULES = DenseSiam.RULES
    head_name = "PseudoLabelSemSegHead"

    @configurable
    def __init__(
        self,
        *,
        grid_size: int,
        sample_features: bool,
        region_heads: RegionSim,
        whole_cells: bool = False,
        pixel_weight: float = 1.0,
        target_temperature: float = 1.0,
        region_weight: float = 0.1,
        region_start: float = 0.0,
        usage_weight: float = 0.0,
        usage_exponent: float = 0.0,
        **kwargs,
    ):
        """Store modules and loss weights.

        Args:
            grid_size: S, points per side sampled in the overlap.
            sample_features: True samples the decoder's features before the classifiers; False samples the classifiers'
                outputs.
            region_heads: heads of RegionSim.
            whole_cells: see :func:`densesiam_d2.modeling.consistency.encoded_views`.
            pixel_weight, region_weight: loss weights >= 0.
            target_temperature: see :func:`densesiam_d2.losses.soft_cross_entropy`.
            usage_weight, usage_exponent: weight and exponent of :func:`densesiam_d2.losses.usage_loss` on both views.
            region_start: share of training after which the region loss has its weight; before that the weight is 0.
            kwargs: arguments of :class:`LabelFreeSegmentor`; the head must be a ``PseudoLabelSemSegHead``.
        """
        super().__init__(**kwargs)
        self.grid_size = grid_size
        self.sample_features = sample_features
        self.whole_cells = whole_cells
        self.region = region_heads
        self.pixel_weight = pixel_weight
        self.target_temperature = target_temperature
        self.region_weight = region_weight
        self.usage_weight, self.usage_exponent = usage_weight, usage_exponent
        self.region_start = region_start

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        if problems := super().problems(cfg):
            return problems
        if weight := cfg.MODEL.DENSESIAM.IMAGE.LOSS_WEIGHT:
            problems.append(f"MODEL.DENSESIAM.IMAGE.LOSS_WEIGHT is {weight}; only DenseSiam uses it: leave it at 0.0")
        keys = cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL
        if 0 < keys.MERGE_FROM < cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            problems.append(
                f"MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM is {keys.MERGE_FROM}: it must be 0, or at least "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES ({cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES})"
            )
        for key, value in (
            ("MODEL.DENSESIAM.USAGE.LOSS_WEIGHT", cfg.MODEL.DENSESIAM.USAGE.LOSS_WEIGHT),
            ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SINKHORN", keys.SINKHORN),
        ):
            if value and cfg.SOLVER.ACCUMULATE > 1:
                problems.append(
                    f"{key} is {value}; this compares the images of a batch with each other, so the batch cannot be "
                    f"split: set SOLVER.ACCUMULATE 1, not {cfg.SOLVER.ACCUMULATE}"
                )
        if keys.START == "kmeans" and (not keys.NORMALIZE or keys.LOGIT_NORM or keys.NUM_PROJ_CONVS):
            problems.append(
                "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.START is 'kmeans': it needs NORMALIZE True, LOGIT_NORM False and "
                "NUM_PROJ_CONVS 0 beside it"
            )
        return problems

    @classmethod
    def from_config(cls, cfg):
        keys = cfg.MODEL.DENSESIAM
        return {
            **super().from_config(cfg),
            "grid_size": keys.GRID_SIZE,
            "sample_features": keys.GRID_POSITION == "feature",
            "region_heads": RegionSim.of(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
            "whole_cells": keys.WHOLE_CELLS,
            "pixel_weight": keys.PIXEL.LOSS_WEIGHT,
            "target_temperature": keys.PIXEL.TARGET_TEMPERATURE,
            "region_weight": keys.REGION.LOSS_WEIGHT,
            "region_start": keys.REGION.START,
            "usage_weight": keys.USAGE.LOSS_WEIGHT,
            "usage_exponent": keys.USAGE.EXPONENT,
        }

    def build_hooks(self, cfg: CfgNode) -> list[HookBase]:
        if cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.START == "kmeans":
            return [KMeansStartHook(self, cfg.SOLVER.IMS_PER_BATCH)]
        return []

    def forward(self, batched_inputs):
        """Compare two views in training; segment whole images otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_pixel", "loss_pixel_aux" (with an auxiliary classifier), "loss_sem_seg" and
            "loss_region", weighted; otherwise see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        f1, f2 = self.encode(x1), self.encode(x2)  # (N, C, h, w)
        view1, view2, valid = encoded_views(f1, f2, boxes1, boxes2, self.grid_size, whole_cells=self.whole_cells)

        head = self.sem_seg_head
        main_weight, aux_weight = head.similarity_weights()
        losses = {}
        if head.aux_classifier is not None:
            losses["loss_pixel_aux"] = self.similarity(view1, view2, valid, head.aux_classifier)[0] * aux_weight
        loss_pixel, (z1, z2), (t1, t2) = self.similarity(view1, view2, valid, head.classifier)  # (N, K, S, S)
        losses["loss_pixel"] = loss_pixel * main_weight
        pseudo_label = partial(pseudo_label_loss, rebalance=head.rebalance, valid=valid)
        losses["loss_sem_seg"] = (pseudo_label(z1, t1) + pseudo_label(z2, t2)) / 2 * head.loss_weight
        loss_region = self.region(view1.s, view2.s, z1, z2, valid)
        losses["loss_region"] = loss_region * self.weight_from(self.region_start, self.region_weight)
        if self.usage_weight:
            z, both = torch.cat([z1, z2]), torch.cat([valid, valid])
            losses["loss_usage"] = usage_loss(z, self.usage_exponent, both) * self.usage_weight

        if head.merging is not None:
            head.merging.count(z1, z2, valid)
        self.log_cluster_metrics(z1, z2, valid)
        if self.metrics_due():
            self.log_metrics(z1, overlap=overlap_boxes(boxes1, boxes2)[1], winners=count_winners(z1.argmax(dim=1)))
        return losses

    def similarity(
        self, view1: EncodedView, view2: EncodedView, valid: torch.Tensor, classifier
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Return the weighted soft cross-entropy, and of both views a classifier's logits z and the targets t.

        The shapes are those of ``project_points``. The argmax of a target is the pseudo label of the view's points.
        """
        z1, p1 = project_points(classifier, view1, sample_features=self.sample_features)
        z2, p2 = project_points(classifier, view2, sample_features=self.sample_features)
        t1, t2, temperature = z1.detach(), z2.detach(), self.target_temperature
        if self.sem_seg_head.sinkhorn:
            t1, t2 = (balanced_logits(t.float() / temperature, valid) for t in (t1, t2))
            temperature = 1.0
        cross_entropy = partial(soft_cross_entropy, valid=valid, target_temperature=temperature)
        loss = (cross_entropy(p1, t2) + cross_entropy(p2, t1)) / 2
        return loss * self.pixel_weight, (z1, z2), (t1, t2)
