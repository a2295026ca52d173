"""SlotCon: Self-Supervised Visual Representation Learning with Semantic Grouping (NeurIPS 2022, arXiv 2205.15288)."""

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from densesiam_d2.geometry import overlap_boxes, overlap_grids, sample
from densesiam_d2.layers import (
    MomentumTeacher,
    conv_mlp,
    cosine_momentum,
    gather,
    gather_uneven,
    with_idle,
    world_size,
)
from densesiam_d2.losses import active_slots, pool_slots, prototype_scores, slot_infonce, soft_cross_entropy
from densesiam_d2.modeling.consistency import count_winners
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import POSITIVE, PROBABILITY, SHARE_BELOW_1

__all__ = ["SlotCon"]


@META_ARCH_REGISTRY.register()
class SlotCon(SiameseMetaArch):
    """Group pixels by learned prototypes as a teacher groups them in the other view, and contrast the groups (slots).

    Letters: x view, z projection, s scores (cosines of pixels with prototypes), a aligned scores (those at the common
    points), g slots; t stands for the teacher, the digit is the number of the view. N images, C feature channels,
    D embedding, K prototypes and as many slots per view, h,w feature cells, S side of the grid of common points.

    The scores are aligned by the project's grid of common points. For views that overlap, the points and values are
    those of the released RoIAlign (aligned=True) of the overlap's rectangle, which takes one sample per cell, because
    the rectangle is not larger than the map. Only the order of the points differs, and the loss is a mean over them.

    Source: models/slotcon.py in CVMI-Lab/SlotCon. Departures: images whose views do not overlap are left out of the
    grouping loss (there: a rectangle of negative size); the mean over slots is over those of all processes (there: of
    each process, NaN without any); scores, slots and predictor are in float32, also with AMP.
    """

    exports = "teacher.backbone"
    accumulates = False
    RULES = {
        "MODEL.SLOTCON.SLOTS": (lambda v: v > 1, "> 1"),
        "MODEL.SLOTCON.HIDDEN_DIM": POSITIVE,
        "MODEL.SLOTCON.OUT_DIM": POSITIVE,
        "MODEL.SLOTCON.STUDENT_TEMPERATURE": POSITIVE,
        "MODEL.SLOTCON.TEACHER_TEMPERATURE": POSITIVE,
        "MODEL.SLOTCON.SLOT_TEMPERATURE": POSITIVE,
        "MODEL.SLOTCON.CENTER_MOMENTUM": PROBABILITY,
        "MODEL.SLOTCON.MOMENTUM": SHARE_BELOW_1,
        "MODEL.SLOTCON.GROUP_WEIGHT": PROBABILITY,
    }

    @configurable
    def __init__(
        self,
        *,
        projector: nn.Module,
        predictor: nn.Module,
        num_slots: int,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        slot_temperature: float = 0.2,
        center_momentum: float = 0.9,
        momentum: float = 0.99,
        group_weight: float = 0.5,
        **kwargs,
    ):
        """Store the modules, draw the prototypes and copy the teacher.

        Args:
            projector: module for inputs (N, C, h, w).
            predictor: module for inputs (R, D, 1, 1), R slots.
            num_slots, dim: K and D.
            student_temperature: of the student's scores in the grouping loss.
            teacher_temperature: of the teacher's scores in the grouping loss, and of the pooling to slots in both.
            slot_temperature: of the contrast between slots.
            center_momentum: momentum of the centre, the running mean of the teacher's scores.
            momentum: momentum of the teacher at the start; it rises to 1 along a cosine.
            group_weight: weight of the grouping loss; that of the contrast is 1 minus this.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.projector = projector
        self.predictor = predictor
        self.prototypes = nn.Embedding(num_slots, dim)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.slot_temperature = slot_temperature
        self.center_momentum = center_momentum
        self.momentum = momentum
        self.group_weight = group_weight
        self.teacher = MomentumTeacher(backbone=self.backbone, projector=projector, prototypes=self.prototypes)
        self.register_buffer("center", torch.zeros(num_slots))

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.SLOTCON."""
        keys = cfg.MODEL.SLOTCON = CfgNode()
        # K, the number of prototypes: 256 for COCO, 2048 for ImageNet.
        keys.SLOTS = 2048
        # Hidden width of projector and predictor, and D, the width of their outputs.
        keys.HIDDEN_DIM = 4096
        keys.OUT_DIM = 256
        # Temperatures of the student's and of the teacher's scores in the grouping loss. The teacher's is also used by
        # both networks when they pool pixels to slots.
        keys.STUDENT_TEMPERATURE = 0.1
        keys.TEACHER_TEMPERATURE = 0.07
        # Temperature of the contrast between slots.
        keys.SLOT_TEMPERATURE = 0.2
        # Momentum of the centre, the running mean of the teacher's scores.
        keys.CENTER_MOMENTUM = 0.9
        # Momentum of the teacher at the start of training.
        keys.MOMENTUM = 0.99
        # Weight of the grouping loss; the contrast between slots has 1 - GROUP_WEIGHT.
        keys.GROUP_WEIGHT = 0.5

    @classmethod
    def from_config(cls, cfg):
        # A process may have one active slot, which BN refuses, or none, which naiveSyncBN refuses.
        if cfg.MODEL.SSL.NORM in ("BN", "naiveSyncBN") and world_size() > 1:
            raise ValueError(
                f"MODEL.SSL.NORM is {cfg.MODEL.SSL.NORM!r}; with several processes SlotCon needs a norm over the slots "
                "of all: set SyncBN"
            )
        ret = super().from_config(cfg)
        keys = cfg.MODEL.SLOTCON
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        head = partial(
            conv_mlp,
            dims=[keys.HIDDEN_DIM, keys.HIDDEN_DIM, keys.OUT_DIM],
            norm=partial(get_norm, cfg.MODEL.SSL.NORM),
            bias_hidden=True,
            bias_last=True,
            last_norm_affine=None,
            activation=nn.GELU,
        )
        return {
            **ret,
            "projector": head(in_dim).apply(_truncated_normal),
            "predictor": head(keys.OUT_DIM).apply(_truncated_normal),
            "num_slots": keys.SLOTS,
            "dim": keys.OUT_DIM,
            "student_temperature": keys.STUDENT_TEMPERATURE,
            "teacher_temperature": keys.TEACHER_TEMPERATURE,
            "slot_temperature": keys.SLOT_TEMPERATURE,
            "center_momentum": keys.CENTER_MOMENTUM,
            "momentum": keys.MOMENTUM,
            "group_weight": keys.GROUP_WEIGHT,
        }

    def forward(self, batched_inputs):
        """Compare two views with the teacher's groups in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_group" and "loss_slot", weighted; otherwise "features" (C, h, w) per image.

        Raises:
            RuntimeError: the model does not know the share of training done, see ``ProgressHook``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        self.teacher.update(cosine_momentum(self.momentum, self.time()))
        with torch.no_grad():
            zt1, st1 = self.project(x1, self.teacher)  # (N, D, h, w), (N, K, h, w)
            zt2, st2 = self.project(x2, self.teacher)
        z1, s1 = self.project(x1, self)
        z2, s2 = self.project(x2, self)

        grid1, grid2, valid = overlap_grids(boxes1, boxes2, s1.shape[-1])
        a1, a2, at1, at2 = sample(s1, grid1), sample(s2, grid2), sample(st1, grid1), sample(st2, grid2)
        loss_group = self.grouping_loss(a1, at2, valid) + self.grouping_loss(a2, at1, valid)
        self.update_center(st1, st2)

        pool = partial(pool_slots, temperature=self.teacher_temperature)
        g1, g2, gt1, gt2 = pool(z1, s1), pool(z2, s2), pool(zt1, st1), pool(zt2, st2)  # (N, K, D)
        loss_slot = self.slot_loss(g1, s1, gt2, st2) + self.slot_loss(g2, s2, gt1, st1)

        self.log_cluster_metrics(at1 / self.teacher_temperature, at2 / self.teacher_temperature, valid)
        if self.metrics_due():
            # Projections share a large mean, also in a healthy training; centred scores do not.
            centred, overlap = st1 - self.center[:, None, None], overlap_boxes(boxes1, boxes2)[1]
            active = active_slots(s1).sum(dim=1).float().mean()  # per view
            self.log_metrics(centred, overlap=overlap, winners=count_winners(st1.argmax(dim=1)), active_slots=active)
        return {"loss_group": self.group_weight * loss_group, "loss_slot": (1 - self.group_weight) * loss_slot}

    def project(self, x: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a view's projections (N, D, h, w) and scores (N, K, h, w); network is the model or its teacher."""
        z = network.projector(self.encode(x, network.backbone))
        return z, prototype_scores(z, network.prototypes.weight)

    def grouping_loss(self, a: torch.Tensor, at: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of a view's aligned scores against the teacher's of the other view, a scalar.

        Args:
            a, at: (N, K, S, S) scores at the common points.
            valid: (N,) bool, the images whose views overlap.
        """
        targets = (at - self.center[:, None, None]) / self.teacher_temperature
        return soft_cross_entropy(a / self.student_temperature, targets, valid)

    def slot_loss(self, g: torch.Tensor, s: torch.Tensor, gt: torch.Tensor, st: torch.Tensor) -> torch.Tensor:
        """Return the contrast of a view's slots with the teacher's slots of the other view, a scalar.

        The queries are the slots that are active both for the student here and for the teacher in the other view of the
        same image. The keys are all active slots of the teacher, of all images in all processes.

        Args:
            g, gt: (N, K, D) slots of the student, and of the teacher in the other view.
            s, st: (N, K, h, w) their scores.
        """
        is_key = active_slots(st)  # (N, K)
        is_query = active_slots(s) & is_key
        keys, first = gather_uneven(gt[is_key])  # (M, D)
        positives = first + is_key.flatten().cumsum(dim=0).view_as(is_key)[is_query] - 1  # (R,)
        # Batch norm needs two rows. All processes skip the predictor together, because its norms wait for each other.
        if gather(is_query.sum().view(1)).sum() < 2:
            return with_idle(g.new_zeros(()), self.predictor.parameters())
        # R may be 0 in this process. With AMP, nn.SyncBatchNorm would then send half precision, but the others float32.
        with torch.autocast(g.device.type, enabled=False):
            p = self.predictor(g[is_query][:, :, None, None]).flatten(1)  # (R, D)
        return slot_infonce(p, keys, positives, self.slot_temperature)

    @torch.no_grad()
    def update_center(self, st1: torch.Tensor, st2: torch.Tensor) -> None:
        """Move the centre towards the mean of the teacher's scores (N, K, h, w) of both views in all processes."""
        mean = torch.cat([st1, st2]).mean(dim=(0, 2, 3), keepdim=True).flatten(1)  # (1, K)
        self.center.lerp_(gather(mean).mean(dim=0), 1 - self.center_momentum)


def _truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
