"""DenseSiam: Dense Siamese Network for Dense Unsupervised Learning (ECCV 2022, arXiv 2203.11075)."""

from functools import partial

from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.geometry import overlap_boxes
from densesiam_d2.layers import ProjectorPredictor
from densesiam_d2.losses import negative_cosine
from densesiam_d2.modeling.consistency import RegionSim, count_winners, encoded_views, project_points
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.rules import NOT_NEGATIVE, POSITIVE, SHARE_BELOW_1, WIDTHS, one_of

__all__ = ["DenseSiam"]


@META_ARCH_REGISTRY.register()
class DenseSiam(SiameseMetaArch):
    """Pixel and region consistency between two views, without negative pixels and without a second network.

    Letters: x view, f encoder feature, z projection, p prediction; the digit is the number of the view.
    N images, C feature channels, D embedding, M = D regions, S side of the grid of common points.
    """

    fixed_lr_modules = ("dense.predictor", "region.predictor")
    RULES = {
        "MODEL.DENSESIAM.PROJ_DIMS": WIDTHS,
        "MODEL.DENSESIAM.PRED_DIM": POSITIVE,
        "MODEL.DENSESIAM.GRID_SIZE": POSITIVE,
        "MODEL.DENSESIAM.GRID_POSITION": one_of("output", "feature"),
        "MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT": NOT_NEGATIVE,
        "MODEL.DENSESIAM.PIXEL.TARGET_TEMPERATURE": POSITIVE,
        "MODEL.DENSESIAM.USAGE.LOSS_WEIGHT": NOT_NEGATIVE,
        "MODEL.DENSESIAM.USAGE.EXPONENT": NOT_NEGATIVE,
        "MODEL.DENSESIAM.REGION.LOSS": one_of("infonce", "cosine"),
        "MODEL.DENSESIAM.REGION.TEMPERATURE": POSITIVE,
        "MODEL.DENSESIAM.REGION.LOSS_WEIGHT": NOT_NEGATIVE,
        "MODEL.DENSESIAM.REGION.START": SHARE_BELOW_1,
        "MODEL.DENSESIAM.REGION.PROJ_DIMS": WIDTHS,
        "MODEL.DENSESIAM.REGION.PRED_DIM": POSITIVE,
        "MODEL.DENSESIAM.IMAGE.LOSS_WEIGHT": NOT_NEGATIVE,
        "MODEL.DENSESIAM.IMAGE.PROJ_DIMS": WIDTHS,
        "MODEL.DENSESIAM.IMAGE.PRED_DIM": POSITIVE,
    }

    @configurable
    def __init__(
        self,
        *,
        grid_size: int,
        sample_features: bool,
        dense_heads: ProjectorPredictor,
        region_heads: RegionSim,
        image_heads: ProjectorPredictor | None = None,
        pixel_weight: float = 1.0,
        region_weight: float = 0.1,
        image_weight: float = 0.0,
        region_start: float = 0.0,
        **kwargs,
    ):
        """Store modules and loss weights.

        Args:
            grid_size: S, points per side sampled in the overlap.
            sample_features: True samples the encoder's features before the heads; False samples the heads' outputs.
            dense_heads: heads of PixSim.
            region_heads: heads of RegionSim.
            image_heads: heads of the image-level loss, for inputs (N, C, 1, 1); None: this loss is left out.
            pixel_weight, region_weight, image_weight: loss weights >= 0.
            region_start: share of training after which the region loss has its weight; before that the weight is 0.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.grid_size = grid_size
        self.sample_features = sample_features
        self.dense = dense_heads
        self.region = region_heads
        self.image = image_heads
        if image_heads is not None:
            self.fixed_lr_modules = (*self.fixed_lr_modules, "image.predictor")
        self.pixel_weight = pixel_weight
        self.region_weight = region_weight
        self.image_weight = image_weight
        self.region_start = region_start

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.DENSESIAM; DenseSiamSegmentor reads these keys too."""
        ds = cfg.MODEL.DENSESIAM = CfgNode()
        # Output widths of the dense projector's 1x1 convolutions. The last is D, the embedding size of PixSim and, as
        # in the released construction, the number of soft region masks of RegionSim. Inferred.
        ds.PROJ_DIMS = [512, 512, 256]
        # Hidden width of the dense predictor (D -> PRED_DIM -> D). Inferred.
        ds.PRED_DIM = 128
        # Side S of the grid of points sampled in the overlap (GridSample). In pretraining this is the side of res5 at
        # 224 px (inferred), in segmentation the side of the aligned feature map.
        ds.GRID_SIZE = 7
        # What GridSample samples: "output" (p and z, as in the paper's text) or "feature" (features of the encoder, as
        # in the released code).
        ds.GRID_POSITION = "output"
        # Segmentation only: cut whole cells out of view 2's map, as the released code does with VIEWS ["crop", "full"],
        # instead of the exact overlap.
        ds.WHOLE_CELLS = False

        # PixSim: weight of the symmetrised similarity of p and stop-gradient z. Inferred for pretraining.
        ds.PIXEL = CfgNode()
        ds.PIXEL.LOSS_WEIGHT = 1.0
        # Segmentation only: divides the target's logits; below 1 the targets are sharper than the predictions.
        ds.PIXEL.TARGET_TEMPERATURE = 1.0

        # RegionSim.
        ds.REGION = CfgNode()
        # "infonce" (over the regions of one image; released) or "cosine" (p against stop-gradient z). Inferred.
        ds.REGION.LOSS = "infonce"
        # Temperature of "infonce". As released for segmentation; inferred for pretraining.
        ds.REGION.TEMPERATURE = 0.1
        # Stop the gradient through the target regions. "cosine" always stops it; the released "infonce" does not.
        ds.REGION.STOP_GRADIENT = False
        # Weight of the loss, and the share of training in [0, 1) at which it starts. Before, the weight is 0, but the
        # loss is still computed. Both inferred for pretraining.
        ds.REGION.LOSS_WEIGHT = 0.1
        ds.REGION.START = 0.0
        # Widths of the region projector, hidden width of the region predictor. Inferred for pretraining.
        ds.REGION.PROJ_DIMS = [512, 512, 256]
        ds.REGION.PRED_DIM = 128

        # Pretraining only: weight of the loss of whole images (SimSiam); with 0 there are no heads for it. The released
        # segmentation has such a branch, turned off, of these widths, with a cross-entropy instead of the cosine. That
        # pretraining goes without it is inferred.
        ds.IMAGE = CfgNode()
        ds.IMAGE.LOSS_WEIGHT = 0.0
        ds.IMAGE.PROJ_DIMS = [512, 512, 512]
        ds.IMAGE.PRED_DIM = 512

        # Segmentation only: weight of the divergence of the clusters' shares from a prior in which the r-th largest
        # cluster has a share in proportion to r ** -EXPONENT (0: all equal). Not in the paper.
        ds.USAGE = CfgNode()
        ds.USAGE.LOSS_WEIGHT = 0.0
        ds.USAGE.EXPONENT = 0.0

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        keys = cfg.MODEL.DENSESIAM
        segmentation = [
            ("USAGE.LOSS_WEIGHT", keys.USAGE.LOSS_WEIGHT, 0.0),
            ("PIXEL.TARGET_TEMPERATURE", keys.PIXEL.TARGET_TEMPERATURE, 1.0),
            ("WHOLE_CELLS", keys.WHOLE_CELLS, False),
        ]
        return [
            f"MODEL.DENSESIAM.{key} is {value}; only DenseSiamSegmentor uses it: leave it at {unused}"
            for key, value, unused in segmentation
            if value != unused
        ]

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys = cfg.MODEL.DENSESIAM
        in_dim = ret["backbone"].output_shape()[cfg.MODEL.SSL.IN_FEATURE].channels
        norm = partial(get_norm, cfg.MODEL.SSL.NORM)
        dense_heads = ProjectorPredictor(in_dim, keys.PROJ_DIMS, keys.PRED_DIM, norm)
        region_heads, image_heads = RegionSim.of(cfg, in_dim), None
        if keys.IMAGE.LOSS_WEIGHT:  # built last, so that the other heads start as they do without it
            image_heads = ProjectorPredictor(in_dim, keys.IMAGE.PROJ_DIMS, keys.IMAGE.PRED_DIM, norm)
        return {
            **ret,
            "grid_size": keys.GRID_SIZE,
            "sample_features": keys.GRID_POSITION == "feature",
            "dense_heads": dense_heads,
            "region_heads": region_heads,
            "image_heads": image_heads,
            "pixel_weight": keys.PIXEL.LOSS_WEIGHT,
            "region_weight": keys.REGION.LOSS_WEIGHT,
            "image_weight": keys.IMAGE.LOSS_WEIGHT,
            "region_start": keys.REGION.START,
        }

    def forward(self, batched_inputs):
        """Compare two views in training; return features otherwise.

        Args:
            batched_inputs: in training, the dict of ``collate_views`` ("views" uint8 (N, 2, 3, H, W), "view_boxes"
                (N, 2, 4)) or a list of what ``TwoViewDatasetMapper`` returns; otherwise a list of dicts with "image".

        Returns:
            In training, "loss_pixel" and "loss_region", and with heads for it "loss_image", weighted; otherwise
            "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        f1, f2 = self.encode(x1), self.encode(x2)  # (N, C, h, w)
        view1, view2, valid = encoded_views(f1, f2, boxes1, boxes2, self.grid_size)

        z1, p1 = project_points(self.dense, view1, sample_features=self.sample_features)  # (N, D, S, S)
        z2, p2 = project_points(self.dense, view2, sample_features=self.sample_features)
        loss_pixel = (negative_cosine(p1, z2, valid) + negative_cosine(p2, z1, valid)) / 2
        loss_region = self.region(view1.s, view2.s, z1, z2, valid)

        if self.metrics_due():
            self.log_metrics(z1, overlap=overlap_boxes(boxes1, boxes2)[1], winners=count_winners(z1.argmax(dim=1)))
        losses = {
            "loss_pixel": loss_pixel * self.pixel_weight,
            "loss_region": loss_region * self.weight_from(self.region_start, self.region_weight),
        }
        if self.image is not None:
            zi1, zi2 = (self.image.projector(f.mean(dim=(2, 3), keepdim=True)) for f in (f1, f2))  # (N, D, 1, 1)
            pi1, pi2 = self.image.predictor(zi1), self.image.predictor(zi2)
            losses["loss_image"] = (negative_cosine(pi1, zi2) + negative_cosine(pi2, zi1)) / 2 * self.image_weight
        return losses
