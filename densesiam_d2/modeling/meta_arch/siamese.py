"""The base class of all two-view methods: preprocessing, encoder, schedule, metrics. It has no loss and no forward."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.engine.train_loop import HookBase
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import nn

from densesiam_d2.layers import apply_color_steps, cluster_metrics, embedding_spread, with_idle
from densesiam_d2.modeling.backbone.checkpointing import checkpoint_stages
from densesiam_d2.rules import Rule

__all__ = ["SiameseMetaArch"]

METRIC_PERIOD = 20  # iterations; the same as for detectron2's writers


class SiameseMetaArch(nn.Module):
    """Base of methods that learn from two views of each image.

    A method is a subclass that implements its paper in ``forward`` and returns ``{"loss_*": scalar}`` in training.
    Everything that the forward changes besides gradients must be a buffer or belong to a module with ``undo()``,
    because the trainer restores it when it drops a step. What must change once per batch, also if SOLVER.ACCUMULATE
    splits the batch, has an attribute ``batch_part``, as :class:`~densesiam_d2.layers.MomentumTeacher` has.

    Attributes:
        output: what the model returns in evaluation: "features" or "semantic".
        exports: name of the submodule that is exported for transfer, such as "teacher.backbone".
        fixed_lr_modules: names of submodules that keep SOLVER.BASE_LR during the whole training.
        accumulates: whether SOLVER.ACCUMULATE may split a batch. False if the loss compares images with each other.
        RULES: config key -> rule for its values, for the keys of :meth:`add_config`.
    """

    output = "features"
    exports = "backbone"
    fixed_lr_modules: tuple[str, ...] = ()
    accumulates = True
    RULES: dict[str, Rule] = {}

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str,
        pixel_mean: list[float],
        pixel_std: list[float],
        zero_init_residual: bool = False,
    ):
        """Store the encoder and the input statistics.

        Args:
            backbone: any backbone of detectron2's registry.
            in_feature: name of the backbone output that the method uses.
            pixel_mean, pixel_std: per channel, in the order of ``INPUT.FORMAT`` and the range of the images.
            zero_init_residual: initialise the scale of the last norm of each residual branch of a ResNet with 0.
        """
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Share of training done, in [0, 1]; set before each step by densesiam_d2.engine.ProgressHook.
        self.progress: float | None = None
        if zero_init_residual:
            _zero_init_residual(backbone)

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add the method's own keys to a config."""

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        """Return one line for each problem of a config with this method; ``RULES`` already check single keys."""
        return []

    @classmethod
    def num_clusters(cls, cfg: CfgNode) -> int:
        """Return how many clusters a method with the output "semantic" predicts."""
        return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    def build_hooks(self, cfg: CfgNode) -> list[HookBase]:
        """Return the method's own hooks of the training loop; the watchdog does not count their time."""
        return []

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        names = sorted(backbone.output_shape())
        if cfg.MODEL.SSL.IN_FEATURE not in names:
            raise ValueError(f"MODEL.SSL.IN_FEATURE {cfg.MODEL.SSL.IN_FEATURE!r} is not among the backbone's {names}")
        checkpoint_stages(backbone, cfg.MODEL.SSL.CHECKPOINT_STAGES)
        return {
            "backbone": backbone,
            "in_feature": cfg.MODEL.SSL.IN_FEATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "zero_init_residual": cfg.MODEL.SSL.ZERO_INIT_RESIDUAL,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_views(self, batched_inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move a batch to the device, and change its colours (INPUT.SSL.COLOR_ON_DEVICE) and normalise it there.

        Args:
            batched_inputs: the dict of ``collate_views``, or a list of what ``TwoViewDatasetMapper`` returns.

        Returns:
            Two (N, 3, H, W) views in channels-last memory order, and their two (N, 4) view boxes.
        """
        if isinstance(batched_inputs, list):
            keys = batched_inputs[0].keys() & {"views", "view_boxes", "color_steps"}
            batched_inputs = {k: torch.stack([x[k] for x in batched_inputs]) for k in keys}
        views = batched_inputs["views"].to(self.device, non_blocking=True)  # (N, 2, 3, H, W)
        if "color_steps" in batched_inputs:  # INPUT.SSL.COLOR_ON_DEVICE
            views = apply_color_steps(views.flatten(0, 1), batched_inputs["color_steps"].flatten(0, 1))
            views = views.unflatten(0, (-1, 2))
        boxes = batched_inputs["view_boxes"].to(self.device, non_blocking=True)  # (N, 2, 4)
        x1, x2 = (
            ((view - self.pixel_mean) / self.pixel_std).contiguous(memory_format=torch.channels_last)
            for view in views.unbind(dim=1)
        )
        return x1, x2, boxes[:, 0], boxes[:, 1]

    def preprocess_image(self, image: torch.Tensor) -> torch.Tensor:
        """Move a whole image (3, H, W) to the device, normalise it, and pad it for the backbone to (1, 3, H', W')."""
        image = (image.to(self.device) - self.pixel_mean) / self.pixel_std
        padding = (self.backbone.size_divisibility, 0.0, self.backbone.padding_constraints)
        return ImageList.from_tensors([image], *padding).tensor

    def encode(self, x: torch.Tensor, backbone: nn.Module | None = None) -> torch.Tensor:
        """Return the feature map (N, C, h, w) of a view (N, 3, H, W).

        Args:
            x: a normalised view.
            backbone: backbone to use instead of the model's own, such as that of a teacher.
        """
        return self.encode_maps(x, [self.in_feature], backbone)[0]

    def encode_maps(
        self, x: torch.Tensor, names: Sequence[str], backbone: nn.Module | None = None
    ) -> list[torch.Tensor]:
        """Return several feature maps of the backbone, (N, C, h, w) each, in the order of ``names``.

        Args:
            x: normalised images (N, 3, H, W).
            names: outputs of the backbone.
            backbone: backbone to use instead of the model's own, such as that of a teacher.
        """
        x = x.contiguous(memory_format=torch.channels_last)  # gathering loses it; a view that has it is not copied
        features = (self.backbone if backbone is None else backbone)(x)
        first, *others = (features[name] for name in names)
        idle = [f for name, f in features.items() if name not in names]
        return [with_idle(first, idle) if self.training else first, *others]

    def encode_image(self, x: torch.Tensor, backbone: nn.Module | None = None) -> torch.Tensor:
        """Return :meth:`encode` averaged over all positions, (N, C, 1, 1)."""
        return self.encode(x, backbone).mean(dim=(2, 3), keepdim=True)

    def time(self) -> float:
        """Return the share of training done, in [0, 1].

        Raises:
            RuntimeError: ``progress`` was not set.
        """
        if self.progress is None:
            raise RuntimeError(
                "a schedule of this model depends on the share of training done, which nothing sets: "
                "register densesiam_d2.engine.ProgressHook() on the trainer"
            )
        return self.progress

    def weight_from(self, start: float, weight: float) -> float:
        """Return 0 until the share ``start`` of training is done, and ``weight`` after that."""
        return weight if start <= 0 or self.time() >= start else 0.0

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Return the encoder's features of whole images, for probing.

        Args:
            batched_inputs: dicts with "image", (3, H, W) in the range and order of training.

        Returns:
            Per image a dict with "features", (C, h, w), of the backbone that ``exports`` names. The image is padded to
            a multiple of the backbone's ``size_divisibility``.
        """
        backbone = self.get_submodule(self.exports)
        return [{"features": self.encode(self.preprocess_image(x["image"]), backbone)[0]} for x in batched_inputs]

    @staticmethod
    def metrics_due() -> bool:
        """Tell whether this iteration logs ``ssl/*`` metrics: the first, and those at which detectron2 writes its own.

        The other iterations log none, because reading a metric waits for the device.
        """
        iteration = get_event_storage().iter
        return iteration == 0 or (iteration + 1) % METRIC_PERIOD == 0

    def log_metrics(self, z: torch.Tensor, overlap: torch.Tensor | None = None, **metrics: torch.Tensor) -> None:
        """Write ``ssl/*`` metrics of this process's images to the event storage.

        ``ssl/z_std`` is the standard deviation of L2-normalised embeddings over images and points, averaged over
        channels. ``ssl/z_std_ideal`` is 1/sqrt(D), its value for evenly spread directions. If ``ssl/z_std`` is far
        below that, the embeddings have collapsed. Some collapses show only in ``ssl/between`` or
        ``ssl/effective_rank``; for these, ``ssl/within`` and ``ssl/mean_norm`` see :func:`embedding_spread`.

        Args:
            z: (N, D, ...) embeddings.
            overlap: (N,) share of view 2 that view 1 shows; None for methods that do not use the overlap.
            metrics: further scalars; the names have no ``ssl/`` prefix.

        Source: SimSiam, Fig. 2 (arXiv 2011.10566).
        """
        spread = embedding_spread(z.detach())
        z_std_ideal = z.shape[1] ** -0.5
        if "std" in spread:
            spread["z_std"] = spread.pop("std") * z_std_ideal
        if overlap is not None:
            spread |= {"overlap": overlap.mean(), "no_overlap": (overlap <= 0).float().mean()}
        _put_scalars({**spread, **metrics})
        get_event_storage().put_scalar("ssl/z_std_ideal", z_std_ideal, smoothing_hint=False)

    def log_cluster_metrics(self, z1: torch.Tensor, z2: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Write ``ssl/*`` metrics of the assignment to clusters, at the iterations of :meth:`metrics_due`.

        They need no labels; :func:`densesiam_d2.layers.cluster_metrics` says what they are. Call it once in each
        training forward. Each process writes those of its own images.

        Args:
            z1: (N, K, ...) logits of view 1. For hard labels, pass one-hot vectors times a large number.
            z2: (N, K, ...) logits of view 2 at the same points.
            valid: (N,) bool, the images to use; None uses all.
        """
        if not self.metrics_due():
            return
        metrics = cluster_metrics(z1.detach(), z2.detach(), valid)
        if metrics:
            _put_scalars(metrics)


def _put_scalars(metrics: Mapping[str, torch.Tensor]) -> None:
    """Write 0-dim tensors of one device to the event storage as ``ssl/NAME``."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()  # a single wait for the device
    names = [f"ssl/{name}" for name in metrics]
    get_event_storage().put_scalars(smoothing_hint=False, **dict(zip(names, values, strict=True)))


# Kind of block -> name of the last norm of its residual branch.
LAST_NORMS = {
    BottleneckBlock: "conv3.norm",
    DeformBottleneckBlock: "conv3.norm",
    BasicBlock: "conv2.norm",
    torchvision.models.resnet.Bottleneck: "bn3",
    torchvision.models.resnet.BasicBlock: "bn2",
}


def _zero_init_residual(backbone: nn.Module) -> None:
    for block in backbone.modules():
        if type(block) in LAST_NORMS:
            norm = attrgetter(LAST_NORMS[type(block)])(block)
            if isinstance(getattr(norm, "weight", None), nn.Parameter):
                nn.init.zeros_(norm.weight)
