"""SimSiam: Exploring Simple Siamese Representation Learning (CVPR 2021, arXiv 2011.10566)."""

from functools import partial

from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.layers import ProjectorPredictor
from densesiam_d2.losses import negative_cosine
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import POSITIVE, WIDTHS

__all__ = ["SimSiam"]


@META_ARCH_REGISTRY.register()
class SimSiam(SiameseMetaArch):
    """Image-level similarity of two views, with a predictor and a stop-gradient; no negatives and no teacher.

    Letters: x view, f encoder feature, z projection, p prediction; the digit is the number of the view.
    N images, C feature channels, D embedding.

    Source: facebookresearch/simsiam, simsiam/builder.py, for the widths and the norm after the projector. That code has
    a frozen bias before this norm; it is left out, because the norm removes it.
    """

    fixed_lr_modules = ("heads.predictor",)
    RULES = {"MODEL.SIMSIAM.PROJ_DIMS": WIDTHS, "MODEL.SIMSIAM.PRED_DIM": POSITIVE}

    @configurable
    def __init__(self, *, heads: ProjectorPredictor, **kwargs):
        """Store the modules.

        Args:
            heads: projector and predictor, for inputs (N, C, 1, 1).
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.heads = heads

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.SIMSIAM."""
        keys = cfg.MODEL.SIMSIAM = CfgNode()
        # Output widths of the projector's layers; the last is D.
        keys.PROJ_DIMS = [2048, 2048, 2048]
        # Hidden width of the predictor (D -> PRED_DIM -> D).
        keys.PRED_DIM = 512

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.SIMSIAM
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        norm = partial(get_norm, cfg.MODEL.SSL.NORM)
        return {**ret, "heads": ProjectorPredictor(in_dim, keys.PROJ_DIMS, keys.PRED_DIM, norm)}

    def forward(self, batched_inputs):
        """Compare two views in training; return features otherwise.

        Args:
            batched_inputs: in training, the dict of ``collate_views`` ("views" uint8 (N, 2, 3, H, W), "view_boxes"
                (N, 2, 4)) or a list of what ``TwoViewDatasetMapper`` returns; otherwise a list of dicts with "image".

        Returns:
            In training, "loss_image" in [-1, 1]; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        f1, f2 = self.encode_image(x1), self.encode_image(x2)  # (N, C, 1, 1)
        z1, z2 = self.heads.projector(f1), self.heads.projector(f2)  # (N, D, 1, 1)
        p1, p2 = self.heads.predictor(z1), self.heads.predictor(z2)

        if self.metrics_due():
            self.log_metrics(z1)
        return {"loss_image": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2}
