"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (CVPR 2021, arXiv 2011.09157)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import FeatureQueue, gather
from densesiam_d2.losses import info_nce
from densesiam_d2.modeling.meta_arch.moco import MoCo
from densesiam_d2.rules import PROBABILITY

__all__ = ["DenseCL"]


@META_ARCH_REGISTRY.register()
class DenseCL(MoCo):
    """MoCo v2 for images and, in the same way, for positions: each is matched with the most similar of the other view.

    Letters: x view, f encoder feature, q query (of view 1), k key (of view 2). N images, C feature channels, D
    embedding, P positions of the feature map.

    Source: WXinlong/DenseCL, openselfsup/models/densecl.py and necks.py.
    """

    RULES = {"MODEL.DENSECL.DENSE_WEIGHT": PROBABILITY}

    @configurable
    def __init__(self, *, dense_queue: FeatureQueue, dense_weight: float, **kwargs):
        """Store the weight and the second queue.

        Args:
            dense_queue: queue of the means over the positions.
            dense_weight: weight of the loss of positions, in [0, 1]; the loss of images has the rest.
            kwargs: arguments of :class:`MoCo`; ``head`` has the children "image" and "dense".
        """
        super().__init__(**kwargs)
        self.dense_queue = dense_queue
        self.dense_weight = dense_weight

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.DENSECL; the other keys are those of MODEL.MOCO."""
        keys = cfg.MODEL.DENSECL = CfgNode()
        # Share of the loss of positions in the total loss (lambda in the paper).
        keys.DENSE_WEIGHT = 0.5

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        head = nn.ModuleDict({"image": ret["head"], "dense": cls.mlp(in_dim, cfg.MODEL.MOCO.PROJ_DIMS)})
        for part in (ret["backbone"], head["image"]):  # the dense head keeps PyTorch's initialisation, as released
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        dense_queue = FeatureQueue(cfg.MODEL.MOCO.PROJ_DIMS[-1], cfg.MODEL.MOCO.QUEUE_LENGTH)
        return {**ret, "head": head, "dense_queue": dense_queue, "dense_weight": cfg.MODEL.DENSECL.DENSE_WEIGHT}

    def embed(self, x: torch.Tensor, backbone: nn.Module, head: nn.Module) -> tuple[torch.Tensor, ...]:
        """Return what the losses compare of a view (N, 3, H, W).

        Args:
            x: a normalised view.
            backbone, head: the student's or the teacher's.

        Returns:
            The embedding of the image (N, D), of the positions (N, D, P), the mean over the positions (N, D), and the
            features (N, C, P), all float32 with L2 norm 1 over their channels (axis 1).
        """
        f = self.encode(x, backbone)
        image = head["image"](f.mean(dim=(2, 3), keepdim=True)).flatten(1)
        dense = head["dense"](f).flatten(2)
        return tuple(F.normalize(t.float(), dim=1) for t in (image, dense, dense.mean(dim=2), f.flatten(2)))

    def forward(self, batched_inputs):
        """Compare images and positions of two views in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_image" and "loss_dense", weighted; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        self.teacher.update(self.momentum)
        k, k_dense, k_mean, k_f = self.teach(x2)
        q, q_dense, _, q_f = self.embed(x1, self.backbone, self.head)

        k_dense = k_dense.gather(2, most_similar(q_f, k_f)[:, None].expand_as(k_dense))  # (N, D, P)
        rows = (t.transpose(1, 2).flatten(0, 1) for t in (q_dense, k_dense))  # (N * P, D) each
        loss_dense = info_nce(*rows, self.dense_queue.features.clone(), self.temperature).mean()
        loss_image = info_nce(q, k, self.queue.features.clone(), self.temperature).mean()
        self.queue.push(gather(k))
        self.dense_queue.push(gather(k_mean))

        if self.metrics_due():
            self.log_metrics(q_dense)
        return {"loss_image": loss_image * (1 - self.dense_weight), "loss_dense": loss_dense * self.dense_weight}


@torch.no_grad()
def most_similar(f1: torch.Tensor, f2: torch.Tensor) -> torch.Tensor:
    """Return for each position of view 1 the position of view 2 with the largest cosine, (N, P) int64.

    Half precision takes other positions where many are similar, so this is float32 with AMP too.

    Args:
        f1, f2: (N, C, P) and (N, C, R) float32 features of norm 1 over C.
    """
    with torch.autocast(f1.device.type, enabled=False):
        return torch.einsum("ncp,ncr->npr", f1, f2).argmax(dim=2)
