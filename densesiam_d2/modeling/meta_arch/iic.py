"""IIC: Invariant Information Clustering for unsupervised segmentation (ICCV 2019, arXiv 1807.06653)."""

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine.train_loop import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from torch.nn import functional as F

from densesiam_d2.geometry import overlap_boxes, sample, warp_grid
from densesiam_d2.layers import with_idle
from densesiam_d2.losses import mutual_information_loss
from densesiam_d2.modeling.consistency import count_winners
from densesiam_d2.modeling.meta_arch.segmentor import LabelFreeSegmentor
from densesiam_d2.rules import NOT_NEGATIVE, POSITIVE

__all__ = ["IIC"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class IIC(LabelFreeSegmentor):
    """Clusters that carry as much information as possible about the clusters of the other view and of near pixels.

    Two heads share the network: one for over-clustering, one for the K clusters that are evaluated. They take turns:
    the first trains during the first pass over all images, the second during the second pass, and so on.

    Letters: x view, z logits, p probabilities. N images, K clusters, h,w cells, S side of a view in pixels.

    Source: xu-ji/IIC, code/scripts/segmentation/segmentation_twohead.py and what it imports. Departures: no labels are
    read (there: pixels of things are masked by the ground truth in training). View 2 is brought into the frame of view
    1 by the view boxes (there: by the matrix of the flip), which allows any crops.

    Attributes:
        overclustering: whether the over-clustering head is trained now; set by the hook before each step. A loop of
            training without that hook trains the evaluated head only.
    """

    accumulates = False
    head_name = "IICHead"
    RULES = {
        "MODEL.IIC.OVERCLUSTERS": (lambda v: v > 1, "> 1"),
        "MODEL.IIC.HEAD_PADDING": NOT_NEGATIVE,
        "MODEL.IIC.WIDTH": POSITIVE,
        "MODEL.IIC.WINDOW": NOT_NEGATIVE,
        "MODEL.IIC.MARGINAL_WEIGHT": POSITIVE,
    }

    @configurable
    def __init__(self, *, window: int = 10, marginal_weight: float = 1.0, **kwargs):
        """Store the settings of the loss.

        Args:
            window: largest displacement in pixels, see :func:`mutual_information_loss`.
            marginal_weight: see there.
            kwargs: arguments of :class:`LabelFreeSegmentor`; the head must be an ``IICHead``.
        """
        super().__init__(**kwargs)
        self.window = window
        self.marginal_weight = marginal_weight
        self.overclustering = False

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.IIC; the number of evaluated clusters is MODEL.SEM_SEG_HEAD.NUM_CLASSES."""
        keys = cfg.MODEL.IIC = CfgNode()
        # With MODEL.BACKBONE.NAME build_iic_backbone: channels of its first convolution, a multiple of which all others
        # have.
        keys.WIDTH = 64
        # Clusters of the over-clustering head.
        keys.OVERCLUSTERS = 45
        # Cells of value 0 around the map that the heads get. The published network has 1.
        keys.HEAD_PADDING = 0
        # Largest displacement between compared pixels in each direction, in pixels of the view.
        keys.WINDOW = 10
        # Weight of the marginal distributions (lambda); above 1 it favours clusters of equal size.
        keys.MARGINAL_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg):
        keys = cfg.MODEL.IIC
        return {**super().from_config(cfg), "window": keys.WINDOW, "marginal_weight": keys.MARGINAL_WEIGHT}

    def build_hooks(self, cfg: CfgNode) -> list[HookBase]:
        return [_TurnsHook(self)]

    def forward(self, batched_inputs):
        """Compare two views in training; segment whole images otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_over" or "loss_clusters": minus the mutual information of the head whose turn it is;
            otherwise see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        heads = self.sem_seg_head
        name, head, other = "loss_clusters", heads.clustering, heads.overclustering
        if self.overclustering:
            name, head, other = "loss_over", other, head

        z1, z2 = head(self.encode(x1)), head(self.encode(x2))  # (N, K, h, w)
        size = x1.shape[-1]
        grid, mask = warp_grid(boxes1, boxes2, size)
        p1, p2 = probabilities(z1, (size, size)), sample(probabilities(z2, (size, size)), grid)  # (N, K, S, S)
        loss = mutual_information_loss(p1, p2, mask, self.window, self.marginal_weight)

        if self.metrics_due():
            self.log_metrics(z1, overlap=overlap_boxes(boxes1, boxes2)[1], winners=count_winners(z1.argmax(dim=1)))
            self.log_cluster_metrics(*self.common_logits(p1, p2, mask))
        return {name: with_idle(loss, other.parameters())}

    @torch.no_grad()
    def common_logits(self, p1: torch.Tensor, p2: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Return the logarithms (P, K, 1) of both views' probabilities at P pixels that both show, one per cell.

        Args:
            p1, p2: (N, K, S, S) probabilities in the frame of view 1.
            mask: (N, S, S) bool, the pixels that both views show.
        """
        step = self.sem_seg_head.common_stride
        shown = mask[:, ::step, ::step]
        points = [p[:, :, ::step, ::step].movedim(1, -1)[shown] for p in (p1, p2)]  # (P, K)
        return [p.clamp(min=torch.finfo(p.dtype).tiny).log()[..., None] for p in points]

    cell_stride = 1

    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (1, K, H, W) of the pixels; their logarithm is taken after the last resize."""
        return probabilities(self.sem_seg_head.layers(self.backbone(x)), x.shape[-2:])

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment whole images, as :meth:`CellSegmentor.inference`; the logits are logarithms of probabilities."""
        results = super().inference(batched_inputs)
        for result in results:
            if "sem_seg" in result:
                p = result["sem_seg"]
                result["sem_seg"] = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        return results


def probabilities(z: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the probabilities (N, K, H, W) of the pixels from logits (N, K, h, w); the softmax is before the resize.

    The map covers the whole image, also where convolutions without enough padding have made it a few cells smaller.
    """
    return F.interpolate(z.float().softmax(dim=1), size=size, mode="bilinear", align_corners=False)


class _TurnsHook(HookBase):
    """Before each step, choose the head to train: it is a function of the iteration, so a resumed run goes on exactly.

    A batch belongs to the pass of its first image, in all processes. Where a batch holds two passes or more, the turn
    changes with every batch.
    """

    def __init__(self, model: IIC):
        self._model = model

    def before_train(self) -> None:
        if self._turn(self.trainer.max_iter - 1) == 0:
            logger.warning(
                "IIC trains its two heads in turns, a pass over the images each, and %d iterations end within the "
                "first: the head that is scored stays random. Set a larger SOLVER.MAX_ITER",
                self.trainer.max_iter,
            )

    def before_step(self) -> None:
        self._model.overclustering = self._turn(self.trainer.iter) % 2 == 0

    def _turn(self, iteration: int) -> int:
        batches = self.trainer.data_loader.batches
        return batches.epoch_of(iteration) if batches.epoch_of(1) < 2 else iteration
