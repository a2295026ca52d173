"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (arXiv 2003.04297), and the base of its successors."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import FeatureQueue, MomentumTeacher, conv_mlp, gather, shuffle, unshuffle
from densesiam_d2.losses import info_nce
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import POSITIVE, SHARE_BELOW_1, WIDTHS

__all__ = ["MoCo"]


@META_ARCH_REGISTRY.register()
class MoCo(SiameseMetaArch):
    """Tell the teacher's key of an image's other view from a queue of the keys of other images.

    Letters: x view, f encoder feature, q query (of view 1), k key (of view 2). N images, C feature channels, D
    embedding.

    Subclasses override :meth:`embed`, which student and teacher share, and ``forward``; they read MODEL.MOCO too.

    Source: MoCo, Algorithm 1 (arXiv 1911.05722); facebookresearch/moco, moco/builder.py.
    """

    RULES = {
        "MODEL.MOCO.PROJ_DIMS": WIDTHS,
        "MODEL.MOCO.TEMPERATURE": POSITIVE,
        "MODEL.MOCO.MOMENTUM": SHARE_BELOW_1,
        "MODEL.MOCO.QUEUE_LENGTH": POSITIVE,
    }

    @configurable
    def __init__(self, *, head: nn.Module, queue: nn.Module, temperature: float, momentum: float, **kwargs):
        """Store the modules and copy the teacher.

        Args:
            head: what :meth:`embed` applies to the encoder's features.
            queue: a :class:`FeatureQueue` of keys.
            temperature: see :func:`info_nce`.
            momentum: momentum of the teacher, the same during the whole training.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.head = head
        self.temperature = temperature
        self.momentum = momentum
        self.teacher = MomentumTeacher(backbone=self.backbone, head=head)
        self.queue = queue

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.MOCO; DenseCL, ReSim and DetCo read these keys too."""
        keys = cfg.MODEL.MOCO = CfgNode()
        # Output widths of the head's layers; the last is D.
        keys.PROJ_DIMS = [2048, 128]
        keys.TEMPERATURE = 0.2
        # Momentum of the teacher.
        keys.MOMENTUM = 0.999
        # Number of keys that are the negatives.
        keys.QUEUE_LENGTH = 65536

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.MOCO
        return {
            **ret,
            "head": cls.mlp(ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels, keys.PROJ_DIMS),
            "queue": FeatureQueue(keys.PROJ_DIMS[-1], keys.QUEUE_LENGTH),
            "temperature": keys.TEMPERATURE,
            "momentum": keys.MOMENTUM,
        }

    @staticmethod
    def mlp(in_dim: int, dims: list[int]) -> nn.Sequential:
        """Return convolutions of size 1 with bias and ReLU between them, without norm."""
        return conv_mlp(in_dim, dims, norm=nn.Identity, bias_hidden=True, bias_last=True, last_norm_affine=None)

    def embed(self, x: torch.Tensor, backbone: nn.Module, head: nn.Module) -> tuple[torch.Tensor, ...]:
        """Return what the loss compares of a view (N, 3, H, W), here one embedding (N, D) of norm 1.

        Args:
            x: a normalised view.
            backbone, head: the student's or the teacher's.
        """
        return (F.normalize(head(self.encode_image(x, backbone)).flatten(1).float(), dim=1),)

    @torch.no_grad()
    def teach(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return ``embed(x, backbone, head)`` of the teacher, with the images shuffled over all processes meanwhile.

        So the batch norm of a key sees other images than that of its query.
        """
        x, permutation = shuffle(x)
        outputs = self.embed(x, self.teacher.backbone, self.teacher.head)
        return tuple(unshuffle(output, permutation) for output in outputs)

    def forward(self, batched_inputs):
        """Compare the query of view 1 with the key of view 2 in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_image" >= 0; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        self.teacher.update(self.momentum)
        (k,) = self.teach(x2)  # (N, D)
        (q,) = self.embed(x1, self.backbone, self.head)
        loss = info_nce(q, k, self.queue.features.clone(), self.temperature).mean()
        self.queue.push(gather(k))

        if self.metrics_due():
            self.log_metrics(q)
        return {"loss_image": loss}
