"""DenseSiam: Dense Siamese Network for Dense Unsupervised Learning (ECCV 2022, arXiv 2203.11075)."""

from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import build_sem_seg_head
from torch import nn

from densesiam_d2.geometry import overlap_boxes, overlap_grids, sample
from densesiam_d2.layers import ProjectorPredictor, resize_logits, resized_labels
from densesiam_d2.losses import negative_cosine, pool_regions, pseudo_label_loss, region_infonce, soft_cross_entropy
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch

__all__ = ["DenseSiam"]


class _Seen(NamedTuple):
    """What the encoder saw of a view."""

    f: torch.Tensor  # (N, C, h, w)
    grid: torch.Tensor  # (N, S, S, 2), where the view shows the common points
    s: torch.Tensor  # (N, C, S, S), f at the common points


@META_ARCH_REGISTRY.register()
class DenseSiam(SiameseMetaArch):
    """Pixel and region consistency between two views: no negatives among pixels, no second network.

    Letters: x view, f encoder feature, z projection, p prediction, r region embedding; the number is the view.
    N images, C feature channels, D embedding, M = D regions, S side of the grid of common points.

    With a segmentation head, the projections are its cluster logits, their similarity is a soft cross-entropy, and
    pseudo labels are learned beside it.
    """

    @configurable
    def __init__(
        self,
        *,
        grid_size: int,
        sample_features: bool,
        dense_heads: nn.Module | None,
        region_heads: nn.Module,
        image_heads: nn.Module | None = None,
        sem_seg_head: nn.Module | None = None,
        pixel_weight: float = 1.0,
        region_loss: str = "infonce",
        region_temperature: float = 0.1,
        region_stop_gradient: bool = False,
        region_weight: float = 0.1,
        region_start: float = 0.0,
        image_weight: float = 1.0,
        predict_labels: bool = False,
        **kwargs,
    ):
        """Take the parts; see ``densesiam_d2/config.py`` for what each choice rests on.

        Args:
            grid_size: S, points per side sampled in the overlap.
            sample_features: sample encoder features before the heads, instead of the heads' outputs.
            dense_heads: ``ProjectorPredictor`` of PixSim; None with a segmentation head.
            region_heads: ``ProjectorPredictor`` of RegionSim, on (N, C, M, 1).
            image_heads: ``ProjectorPredictor`` on pooled features (N, C, 1, 1), or None.
            sem_seg_head: a ``PseudoLabelSemSegHead``, or None.
            pixel_weight, region_weight, image_weight: loss weights >= 0.
            region_loss: "infonce" or "cosine".
            region_temperature: of "infonce".
            region_stop_gradient: whether "infonce" stops the gradient through its targets.
            region_start: share of training from which on the region loss counts.
            predict_labels: return labels instead of logits where there is a segmentation head.
            kwargs: of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        assert (dense_heads is None) != (sem_seg_head is None), "either dense heads or a segmentation head"
        self.grid_size = grid_size
        self.sample_features = sample_features
        self.dense = dense_heads
        self.region = region_heads
        self.image = image_heads
        self.sem_seg_head = sem_seg_head
        self.pixel_weight = pixel_weight
        self.region_loss = region_loss
        self.region_temperature = region_temperature
        self.region_stop_gradient = region_stop_gradient
        self.region_weight = region_weight
        self.region_start = region_start
        self.image_weight = image_weight
        self.predict_labels = predict_labels

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.DENSESIAM
        shapes = ret["backbone"].output_shape()
        head = build_sem_seg_head(cfg, shapes) if keys.SEM_SEG_ON else None
        in_dim = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM if keys.SEM_SEG_ON else shapes[cfg.MODEL.SSL.IN_FEATURE].channels
        heads = partial(ProjectorPredictor, norm=partial(get_norm, cfg.MODEL.SSL.NORM))
        return {
            **ret,
            "grid_size": keys.GRID_SIZE,
            "sample_features": keys.GRID_POSITION == "feature",
            "dense_heads": None if keys.SEM_SEG_ON else heads(in_dim, keys.PROJ_DIMS, keys.PRED_DIM),
            "region_heads": heads(in_dim, keys.REGION.PROJ_DIMS, keys.REGION.PRED_DIM),
            "image_heads": heads(in_dim, keys.IMAGE.PROJ_DIMS, keys.IMAGE.PRED_DIM) if keys.IMAGE_ON else None,
            "sem_seg_head": head,
            "pixel_weight": keys.PIXEL.LOSS_WEIGHT,
            "region_loss": keys.REGION.LOSS,
            "region_temperature": keys.REGION.TEMPERATURE,
            "region_stop_gradient": keys.REGION.STOP_GRADIENT,
            "region_weight": keys.REGION.LOSS_WEIGHT,
            "region_start": keys.REGION.START,
            "image_weight": keys.IMAGE.LOSS_WEIGHT,
            "predict_labels": cfg.TEST.SEM_SEG_OUTPUT == "labels",
        }

    def forward(self, batched_inputs):
        """Compare two views in training; segment, or return features, otherwise.

        Args:
            batched_inputs: in training, the dict of ``collate_views`` ("views" uint8 (N, 2, 3, H, W), "view_boxes"
                (N, 2, 4)) or a list of what ``TwoViewDatasetMapper`` returns; otherwise a list of dicts with "image".

        Returns:
            In training, a dict of weighted losses; otherwise per image "sem_seg" (K, H, W) logits of the clusters, or
            with ``predict_labels`` "sem_seg_labels" (H, W) and "num_classes", or "features" (C, h, w) without a
            segmentation head.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        grid1, grid2, valid = overlap_grids(boxes1, boxes2, self.grid_size)
        f1, f2 = self.encode_views(x1, x2)  # (N, C, h, w)
        seen1, seen2 = _Seen(f1, grid1, sample(f1, grid1)), _Seen(f2, grid2, sample(f2, grid2))

        if self.sem_seg_head is None:
            z1, p1 = self.project(seen1, self.dense)  # (N, D, S, S)
            z2, p2 = self.project(seen2, self.dense)
            loss_pixel = (negative_cosine(p1, z2, valid) + negative_cosine(p2, z1, valid)) / 2
            losses = {"loss_pixel": loss_pixel * self.pixel_weight}
        else:
            losses, z1, z2 = self.sem_seg_losses(seen1, seen2, valid)

        losses["loss_region"] = self.region_losses(seen1.s, seen2.s, z1, z2, valid)
        if self.image is not None:
            losses["loss_image"] = self.image_losses(f1, f2)
        if self.metrics_due():
            self.log_metrics(z1, overlap=overlap_boxes(boxes1, boxes2)[1], region_usage=_used_share(z1))
        return losses

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the heads see: an encoder feature, or the decoder's map of the segmentation head."""
        return super().encode(x) if self.sem_seg_head is None else self.sem_seg_head.decode(self.backbone(x))

    def project(self, seen: _Seen, heads: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return projection and prediction of one view at the common points.

        Args:
            seen: what the encoder saw of the view.
            heads: a module with ``projector`` and ``predictor``.

        Returns:
            z and p, (N, D, S, S) each.
        """
        if self.sample_features:
            z = heads.projector(seen.s)
            return z, heads.predictor(z)
        z = heads.projector(seen.f)  # (N, D, h, w)
        return sample(z, seen.grid), sample(heads.predictor(z), seen.grid)

    def region_losses(self, f1, f2, z1, z2, valid) -> torch.Tensor:
        """RegionSim: pool the common points into regions, project, predict, compare.

        Args:
            f1, f2: (N, C, S, S) features at the common points.
            z1, z2: (N, M, S, S) logits of the soft region masks.
            valid: (N,) bool.

        Returns:
            Weighted scalar.
        """
        with torch.autocast(f1.device.type, enabled=False):  # sums over a whole view can exceed fp16's 65,504
            zr1, zr2 = self.project_regions(f1, z1), self.project_regions(f2, z2)  # (N, D, M, 1)
            pr1, pr2 = self.region.predictor(zr1), self.region.predictor(zr2)
        if self.region_loss == "cosine":
            loss = (negative_cosine(pr1, zr2, valid) + negative_cosine(pr2, zr1, valid)) / 2
        else:
            if self.region_stop_gradient:
                zr1, zr2 = zr1.detach(), zr2.detach()
            contrast = partial(region_infonce, temperature=self.region_temperature, valid=valid)
            loss = (contrast(pr1, zr2) + contrast(pr2, zr1)) / 2
        return loss * self.weight_from(self.region_start, self.region_weight)

    def project_regions(self, f: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the projections (N, D, M, 1) of features (N, C, S, S) pooled under masks z (N, M, S, S).

        The projector's first convolution and the pooling are both linear: the one that leaves less to do comes first.
        """
        if z.shape[2:].numel() >= z.shape[1]:
            return self.region.projector(pool_regions(f, z))
        return self.region.projector[1:](pool_regions(self.region.projector[0](f), z))

    def sem_seg_losses(
        self, seen1: _Seen, seen2: _Seen, valid: torch.Tensor
    ) -> tuple[dict, torch.Tensor, torch.Tensor]:
        """Compare cluster logits of both views and learn from their pseudo labels.

        Returns:
            Weighted losses, and the main classifier's logits z1, z2 (N, K, S, S).

        Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam.
        """
        head = self.sem_seg_head
        main_weight, aux_weight = head.similarity_weights()
        losses = {}
        for name, heads, weight in (
            ("loss_pixel_aux", head.aux_classifier, aux_weight),
            ("loss_pixel", head.classifier, main_weight),  # last: z1, z2 below are the main classifier's
        ):
            if heads is None:
                continue
            z1, p1 = self.project(seen1, heads)
            z2, p2 = self.project(seen2, heads)
            similarity = (soft_cross_entropy(p1, z2, valid) + soft_cross_entropy(p2, z1, valid)) / 2
            losses[name] = similarity * weight * self.pixel_weight
        pseudo_label = partial(pseudo_label_loss, rebalance=head.rebalance, valid=valid)
        losses["loss_sem_seg"] = (pseudo_label(z1) + pseudo_label(z2)) / 2 * head.loss_weight
        return losses, z1, z2

    def image_losses(self, f1: torch.Tensor, f2: torch.Tensor) -> torch.Tensor:
        """Image-level branch: SimSiam on globally pooled features (N, C, h, w). Returns a weighted scalar."""
        z1 = self.image.projector(f1.mean(dim=(2, 3), keepdim=True))  # (N, D, 1, 1)
        z2 = self.image.projector(f2.mean(dim=(2, 3), keepdim=True))
        p1, p2 = self.image.predictor(z1), self.image.predictor(z2)
        return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2 * self.image_weight

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment whole images by cluster logits, or return features without a segmentation head."""
        if self.sem_seg_head is None:
            return super().inference(batched_inputs)
        head, results = self.sem_seg_head, []
        for x in batched_inputs:
            height, width = x["image"].shape[-2:]
            size = (x.get("height", height), x.get("width", width))
            image = self.preprocess_image(x["image"])
            features = self.backbone(image)
            if self.predict_labels:
                z = head.layers(features)[0]  # (K, h, w)
                padded = (z.shape[1] * head.common_stride, z.shape[2] * head.common_stride)
                labels = resized_labels(z, padded, (height, width), size)
                results.append({"sem_seg_labels": labels, "num_classes": head.num_classes})
            else:
                logits = head(features)[0][0, :, :height, :width]  # without the padding
                results.append({"sem_seg": resize_logits(logits, *size)})
        return results


def _used_share(logits: torch.Tensor) -> torch.Tensor:
    """Return the share of the M channels of (N, M, S, S) logits that win at least one point of the batch."""
    winners = logits.detach().argmax(dim=1).flatten()
    return (torch.bincount(winners, minlength=logits.shape[1]) > 0).float().mean()
