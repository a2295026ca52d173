"""PixPro: Propagate Yourself, pixel-level consistency (CVPR 2021, arXiv 2011.10043)."""

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from densesiam_d2.geometry import near_cells, overlap_boxes
from densesiam_d2.layers import MomentumTeacher, PixelPropagation, conv_mlp, cosine_momentum
from densesiam_d2.losses import negative_cosine, negative_cosine_of_pairs
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import NOT_NEGATIVE, POSITIVE, SHARE_BELOW_1

__all__ = ["PixPro"]


@META_ARCH_REGISTRY.register()
class PixPro(SiameseMetaArch):
    """Predict each cell's projection that a teacher computes for nearby cells of the other view.

    The prediction is the projection after pixel propagation. Optionally the averaged cells are compared too, as in
    BYOL, by an instance branch with its own heads.

    Letters: x view, f encoder feature, z projection, p prediction, t the teacher's projection; the digit is the number
    of the view. N images, C feature channels, D embedding, h,w cells.

    Source: zdaxie/PixPro, contrast/models/PixPro.py. Departure: distances between cells, see
    :func:`densesiam_d2.geometry.near_cells`.
    """

    RULES = {
        "MODEL.PIXPRO.HIDDEN_DIM": POSITIVE,
        "MODEL.PIXPRO.OUT_DIM": POSITIVE,
        "MODEL.PIXPRO.POSITIVE_DISTANCE": POSITIVE,
        "MODEL.PIXPRO.TRANSFORM_LAYERS": (lambda v: v in (0, 1, 2), "0, 1 or 2"),
        "MODEL.PIXPRO.SHARPNESS": (lambda v: v >= 1, ">= 1"),
        "MODEL.PIXPRO.INSTANCE_WEIGHT": NOT_NEGATIVE,
        "MODEL.PIXPRO.MOMENTUM": SHARE_BELOW_1,
    }

    @configurable
    def __init__(
        self,
        *,
        projector: nn.Module,
        propagation: nn.Module,
        positive_distance: float,
        momentum: float,
        instance_projector: nn.Module | None = None,
        instance_predictor: nn.Module | None = None,
        instance_weight: float = 0.0,
        **kwargs,
    ):
        """Store the modules and copy the teacher.

        Args:
            projector, propagation: modules for inputs (N, C, h, w) and (N, D, h, w).
            positive_distance: cells are compared if they are closer than this, see :func:`near_cells`.
            momentum: momentum of the teacher at the start; it rises to 1 along a cosine.
            instance_projector, instance_predictor: heads of the instance branch, for inputs as those of ``projector``
                and ``propagation``; None leaves the branch out.
            instance_weight: weight of the instance branch's loss.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.projector = projector
        self.propagation = propagation
        self.positive_distance = positive_distance
        self.momentum = momentum
        self.instance_projector = instance_projector
        self.instance_predictor = instance_predictor
        self.instance_weight = instance_weight
        students = {"backbone": self.backbone, "projector": projector, "instance_projector": instance_projector}
        self.teacher = MomentumTeacher(**{name: module for name, module in students.items() if module is not None})

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.PIXPRO."""
        keys = cfg.MODEL.PIXPRO = CfgNode()
        # Hidden width of the projector, and D, the width of its output.
        keys.HIDDEN_DIM = 4096
        keys.OUT_DIM = 256
        # Two cells are compared if the distance of their centres is below this, in diagonals of the larger cell.
        keys.POSITIVE_DISTANCE = 0.7
        # Pixel propagation: convolutions that transform what is summed (0, 1 or 2), and the exponent of the weights.
        keys.TRANSFORM_LAYERS = 1
        keys.SHARPNESS = 2.0
        # Weight of the loss of the instance branch; 0 = the model has no such branch.
        keys.INSTANCE_WEIGHT = 0.0
        # Momentum of the teacher at the start of training.
        keys.MOMENTUM = 0.99

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.PIXPRO
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        norm = partial(get_norm, cfg.MODEL.SSL.NORM)
        mlp = partial(conv_mlp, norm=norm, bias_hidden=True, bias_last=True, last_norm_affine=None)
        widths = [keys.HIDDEN_DIM, keys.OUT_DIM]
        layers = [keys.OUT_DIM] * keys.TRANSFORM_LAYERS
        transform = mlp(keys.OUT_DIM, layers) if layers else nn.Identity()
        with_instance = keys.INSTANCE_WEIGHT > 0
        return {
            **ret,
            "projector": mlp(in_dim, widths),
            "propagation": PixelPropagation(transform, keys.SHARPNESS),
            "positive_distance": keys.POSITIVE_DISTANCE,
            "momentum": keys.MOMENTUM,
            "instance_projector": mlp(in_dim, widths) if with_instance else None,
            "instance_predictor": mlp(keys.OUT_DIM, widths) if with_instance else None,
            "instance_weight": keys.INSTANCE_WEIGHT,
        }

    def forward(self, batched_inputs):
        """Compare two views with the teacher's projections in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_pixel" in [-4, 4], where images without overlap count as 0, and with an instance branch
            "loss_image", weighted; otherwise "features" (C, h, w) per image.

        Raises:
            RuntimeError: the model does not know the share of training done, see ``ProgressHook``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        self.teacher.update(cosine_momentum(self.momentum, self.time()))
        with torch.no_grad():
            tf1, tf2 = (self.encode(x, self.teacher.backbone) for x in (x1, x2))  # the teacher's features
            t1, t2 = self.teacher.projector(tf1), self.teacher.projector(tf2)  # (N, D, h, w)

        f1, f2 = self.encode(x1), self.encode(x2)  # (N, C, h, w)
        z1, z2 = self.projector(f1), self.projector(f2)  # (N, D, h, w)
        p1, p2 = self.propagation(z1), self.propagation(z2)
        pairs = near_cells(boxes1, boxes2, z1.shape[-1], self.positive_distance)  # (N, h * w, h * w)
        loss_pixel = negative_cosine_of_pairs(p1, t2, pairs) + negative_cosine_of_pairs(p2, t1, pairs.mT)
        losses = {"loss_pixel": 2 * loss_pixel}

        if self.instance_projector is not None:
            i1, i2 = self.predict_image(f1), self.predict_image(f2)  # (N, D, 1, 1)
            loss_image = negative_cosine(i1, self.teach_image(tf2)) + negative_cosine(i2, self.teach_image(tf1))
            losses["loss_image"] = 2 * self.instance_weight * loss_image
        if self.metrics_due():
            self.log_metrics(z1, overlap=overlap_boxes(boxes1, boxes2)[1])
        return losses

    def predict_image(self, f: torch.Tensor) -> torch.Tensor:
        """Return the instance branch's prediction (N, D, 1, 1), averaged over all cells of features (N, C, h, w)."""
        return self.instance_predictor(self.instance_projector(f)).mean(dim=(2, 3), keepdim=True)

    @torch.no_grad()
    def teach_image(self, f: torch.Tensor) -> torch.Tensor:
        """Return the teacher's projection (N, D, 1, 1) for the instance branch, averaged over all cells of ``f``."""
        return self.teacher.instance_projector(f).mean(dim=(2, 3), keepdim=True)
