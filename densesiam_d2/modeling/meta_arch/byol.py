"""BYOL: Bootstrap Your Own Latent (NeurIPS 2020, arXiv 2006.07733)."""

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from densesiam_d2.layers import MomentumTeacher, conv_mlp, cosine_momentum
from densesiam_d2.losses import negative_cosine
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import POSITIVE, SHARE_BELOW_1

__all__ = ["BYOL"]


@META_ARCH_REGISTRY.register()
class BYOL(SiameseMetaArch):
    """Predict the projection that a teacher, the moving average of this network, computes for the other view.

    Letters: x view, f encoder feature, z projection, p prediction, t the teacher's projection; the digit is the number
    of the view. N images, C feature channels, D embedding.

    Source: google-deepmind/deepmind-research, byol/byol_experiment.py and byol/configs/byol.py. Departures: the teacher
    starts as a copy of the student, so that MODEL.WEIGHTS fills both (there: with its own random weights); it is
    updated before the forward of the next step, not after the current step; heads use PyTorch's initialisation;
    convolutions of the backbone start with detectron2's random weights (there: Haiku's, scaled by their inputs), and
    those of stride 2 and the max-pooling pad both sides alike (there: one pixel more at the right and below); the
    linear classifier that is trained there at the same time, without influence on the encoder, is left out.
    """

    RULES = {
        "MODEL.BYOL.HIDDEN_DIM": POSITIVE,
        "MODEL.BYOL.OUT_DIM": POSITIVE,
        "MODEL.BYOL.MOMENTUM": SHARE_BELOW_1,
    }

    @configurable
    def __init__(self, *, projector: nn.Module, predictor: nn.Module, momentum: float, **kwargs):
        """Store the modules and copy the teacher.

        Args:
            projector, predictor: modules for inputs (N, C, 1, 1) and (N, D, 1, 1).
            momentum: momentum of the teacher at the start; it rises to 1 along a cosine.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.projector = projector
        self.predictor = predictor
        self.momentum = momentum
        self.teacher = MomentumTeacher(backbone=self.backbone, projector=projector)

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.BYOL."""
        keys = cfg.MODEL.BYOL = CfgNode()
        # Hidden width of projector and predictor, and D, the width of their outputs.
        keys.HIDDEN_DIM = 4096
        keys.OUT_DIM = 256
        # Momentum of the teacher at the start of training (0.996 for 1,000 epochs, 0.99 for 300 and 100).
        keys.MOMENTUM = 0.99

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.BYOL
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        head = partial(
            conv_mlp,
            dims=[keys.HIDDEN_DIM, keys.OUT_DIM],
            norm=partial(get_norm, cfg.MODEL.SSL.NORM),
            bias_hidden=True,
            bias_last=False,
            last_norm_affine=None,
        )
        return {**ret, "projector": head(in_dim), "predictor": head(keys.OUT_DIM), "momentum": keys.MOMENTUM}

    def forward(self, batched_inputs):
        """Compare two views with the teacher's projections in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_image" in [0, 8]; otherwise "features" (C, h, w) per image.

        Raises:
            RuntimeError: the model does not know the share of training done, see ``ProgressHook``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        self.teacher.update(cosine_momentum(self.momentum, self.time()))
        t1, t2 = self.teach(x1), self.teach(x2)  # (N, D, 1, 1)

        z1, z2 = self.projector(self.encode_image(x1)), self.projector(self.encode_image(x2))  # (N, D, 1, 1)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        # |p - t|^2 = 2 - 2 cos(p, t) for vectors of norm 1 (Eq. 2), in both directions.
        loss = 4 + 2 * (negative_cosine(p1, t2) + negative_cosine(p2, t1))

        if self.metrics_due():
            self.log_metrics(z1)
        return {"loss_image": loss}

    @torch.no_grad()
    def teach(self, x: torch.Tensor) -> torch.Tensor:
        """Return the teacher's projection (N, D, 1, 1) of a view."""
        return self.teacher.projector(self.encode_image(x, self.teacher.backbone))
