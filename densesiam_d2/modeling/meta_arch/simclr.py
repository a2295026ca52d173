"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (ICML 2020, arXiv 2002.05709)."""

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import conv_mlp, gather_with_gradient
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import POSITIVE, WIDTHS

__all__ = ["SimCLR", "nt_xent"]


def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the normalised, temperature-scaled cross-entropy: find an image's other view among all other views.

    The candidates of a view are the views of all processes except itself: one positive, and 2 * N * processes - 2
    negatives.

    Args:
        z1, z2: (N, D) embeddings of the two views, with the same N in every process. Gradients flow into all of them,
            those of other processes included.
        temperature: divides the cosine similarities.

    Returns:
        Scalar: the mean over the first views of this process plus the mean over its second views.

    Source: SimCLR, Eq. 1; google-research/simclr, objective.py, for the sum of the two means.
    """
    z1, z2 = F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)
    with torch.autocast(z1.device.type, enabled=False):  # half precision is too coarse for a cosine divided by 0.1
        all1, all2 = gather_with_gradient(z1), gather_with_gradient(z2)
        own = torch.arange(len(z1), device=z1.device) + comm.get_rank() * len(z1)  # places of this process's rows
        total = z1.new_zeros(())
        for z, same, other in ((z1, all1, all2), (z2, all2, all1)):
            among_same = (z @ same.T).scatter(1, own[:, None], float("-inf"))  # a view is no candidate for itself
            total = total + F.cross_entropy(torch.cat([z @ other.T, among_same], dim=1) / temperature, own)
    return total


@META_ARCH_REGISTRY.register()
class SimCLR(SiameseMetaArch):
    """Contrast the two views of each image with the views of all other images of the batch.

    Letters: x view, f encoder feature, z projection; the digit is the number of the view. N images, C feature channels,
    D embedding.

    Source: google-research/simclr, model_util.py and objective.py, for the head and the loss. Departures: images
    are normalised with mean and standard deviation, as the transfer expects (there: values in [0, 1]); convolutions
    of the backbone start with detectron2's random weights (there: TensorFlow's, scaled by their inputs); the
    max-pooling pads both sides alike (there: the right and below only); the linear classifier that is trained there
    at the same time, without influence on the encoder, is left out.
    """

    accumulates = False
    RULES = {"MODEL.SIMCLR.PROJ_DIMS": WIDTHS, "MODEL.SIMCLR.TEMPERATURE": POSITIVE}

    @configurable
    def __init__(self, *, projector: nn.Module, temperature: float, **kwargs):
        """Store the modules.

        Args:
            projector: module for inputs (N, C, 1, 1).
            temperature: see :func:`nt_xent`.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.projector = projector
        self.temperature = temperature

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.SIMCLR."""
        keys = cfg.MODEL.SIMCLR = CfgNode()
        # Output widths of the projector's layers; the last is D.
        keys.PROJ_DIMS = [2048, 2048, 128]
        keys.TEMPERATURE = 0.1

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.SIMCLR
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        norm = partial(get_norm, cfg.MODEL.SSL.NORM)
        projector = conv_mlp(in_dim, keys.PROJ_DIMS, norm=norm, bias_last=False, last_norm_affine=True)
        projector[-1].bias.requires_grad_(False)  # the last norm learns a scale only
        for layer in projector:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
        return {**ret, "projector": projector, "temperature": keys.TEMPERATURE}

    def forward(self, batched_inputs):
        """Contrast two views in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_image" >= 0; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        f1, f2 = self.encode_image(x1), self.encode_image(x2)  # (N, C, 1, 1)
        z1, z2 = self.projector(f1).flatten(1), self.projector(f2).flatten(1)  # (N, D)

        if self.metrics_due():
            self.log_metrics(z1)
        return {"loss_image": nt_xent(z1, z2, self.temperature)}
