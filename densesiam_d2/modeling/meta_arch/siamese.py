"""What every two-view method shares: batches to tensors, the encoder, time, metrics. No loss and no order of steps."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import nn

from densesiam_d2.layers import embedding_spread, with_idle

__all__ = ["SiameseMetaArch", "trains_on_views"]

METRIC_PERIOD = 20  # iterations, as detectron2's writers


class SiameseMetaArch(nn.Module):
    """Base of pretraining methods that look at two views of each image.

    A method subclasses it, tells its own story in ``forward`` and returns ``{"loss_*": scalar}`` in training.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str,
        pixel_mean: list[float],
        pixel_std: list[float],
        zero_init_residual: bool = False,
        joint_views: bool = False,
    ):
        """Store the encoder and the input statistics.

        Args:
            backbone: any backbone of detectron2's registry.
            in_feature: name of the backbone output that the method sees.
            pixel_mean, pixel_std: per channel, in the order of ``INPUT.FORMAT`` and the range of the images.
            zero_init_residual: start the last norm of each residual branch at 0.
            joint_views: encode both views in one batch, whose statistics batch norm then takes.
        """
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.joint_views = joint_views
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Share of training done, in [0, 1]; set before each step by densesiam_d2.engine.ProgressHook.
        self.progress: float | None = None
        if zero_init_residual:
            _zero_init_residual(backbone)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        names = sorted(backbone.output_shape())
        if cfg.MODEL.SSL.IN_FEATURE not in names:
            raise ValueError(f"MODEL.SSL.IN_FEATURE {cfg.MODEL.SSL.IN_FEATURE!r} is not among the backbone's {names}")
        return {
            "backbone": backbone,
            "in_feature": cfg.MODEL.SSL.IN_FEATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "zero_init_residual": cfg.MODEL.SSL.ZERO_INIT_RESIDUAL,
            "joint_views": cfg.MODEL.SSL.JOINT_VIEWS,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_views(self, batched_inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move a batch to the device and normalise it there.

        Args:
            batched_inputs: the dict of ``collate_views``, or a list of what ``TwoViewDatasetMapper`` returns.

        Returns:
            Two (N, 3, H, W) views in channels-last memory order, and their two (N, 4) view boxes.
        """
        if isinstance(batched_inputs, list):
            batched_inputs = {k: torch.stack([x[k] for x in batched_inputs]) for k in ("views", "view_boxes")}
        views = batched_inputs["views"].to(self.device, non_blocking=True)  # (N, 2, 3, H, W)
        boxes = batched_inputs["view_boxes"].to(self.device, non_blocking=True)  # (N, 2, 4)
        x1, x2 = (
            ((view - self.pixel_mean) / self.pixel_std).contiguous(memory_format=torch.channels_last)
            for view in views.unbind(dim=1)
        )
        return x1, x2, boxes[:, 0], boxes[:, 1]

    def preprocess_image(self, image: torch.Tensor) -> torch.Tensor:
        """Return a whole image (3, H, W) on the device, normalised, as (1, 3, H', W') padded for the backbone."""
        image = (image.to(self.device) - self.pixel_mean) / self.pixel_std
        padding = (self.backbone.size_divisibility, 0.0, self.backbone.padding_constraints)
        return ImageList.from_tensors([image], *padding).tensor

    def encode_views(self, x1: torch.Tensor, x2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return :meth:`encode` of two views, (N, C, h, w) each: in one call with ``joint_views``, else in two."""
        if self.joint_views:
            return self.encode(torch.cat([x1, x2])).chunk(2)
        return self.encode(x1), self.encode(x2)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the encoder's feature map of a view: (N, 3, H, W) to (N, C, h, w)."""
        features = self.backbone(x)
        f = features.pop(self.in_feature)
        return with_idle(f, features.values()) if self.training else f

    def weight_from(self, start: float, weight: float) -> float:
        """Return ``weight`` once the share ``start`` of training is done, and 0 before.

        Raises:
            RuntimeError: the schedule needs the time and nobody set it.
        """
        if start <= 0:
            return weight
        if self.progress is None:
            raise RuntimeError(
                "a loss of this model starts in mid-training and the model does not know the time: "
                "register densesiam_d2.engine.ProgressHook() on the trainer"
            )
        return weight if self.progress >= start else 0.0

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Return the encoder's features of whole images, for probing.

        Args:
            batched_inputs: dicts with "image", (3, H, W) in the range and order of training.

        Returns:
            Per image a dict with "features", (C, h, w); the image is padded to what the backbone can divide.
        """
        return [{"features": self.encode(self.preprocess_image(x["image"]))[0]} for x in batched_inputs]

    @staticmethod
    def metrics_due() -> bool:
        """Tell whether this iteration logs ``ssl/*`` metrics: the first, and those at which detectron2 writes its own.

        Not every one, for a metric waits for the device.
        """
        iteration = get_event_storage().iter
        return iteration == 0 or (iteration + 1) % METRIC_PERIOD == 0

    def log_metrics(self, z: torch.Tensor, overlap: torch.Tensor, **metrics: torch.Tensor) -> None:
        """Write ``ssl/*`` metrics of this process's images to the event storage.

        ``ssl/z_std`` is the standard deviation of L2-normalised embeddings over images and points, averaged over
        channels. ``ssl/z_std_ideal`` is 1/sqrt(D), its value for directions spread evenly; far below it, the
        embeddings have collapsed. It misses collapses that ``ssl/between`` or ``ssl/effective_rank`` show; for these,
        ``ssl/within`` and ``ssl/mean_norm`` see :func:`embedding_spread`.

        Args:
            z: (N, D, ...) embeddings.
            overlap: (N,) share of view 2 that view 1 shows.
            metrics: further scalars, by name without the prefix.

        Source: SimSiam, Fig. 2 (arXiv 2011.10566).
        """
        spread = embedding_spread(z.detach())
        z_std_ideal = z.shape[1] ** -0.5
        if "std" in spread:
            spread["z_std"] = spread.pop("std") * z_std_ideal
        metrics = {**spread, "overlap": overlap.mean(), "no_overlap": (overlap <= 0).float().mean(), **metrics}
        values = torch.stack([value.float() for value in metrics.values()]).tolist()  # waits for the device once
        metrics = dict(zip(metrics, values, strict=True)) | {"z_std_ideal": z_std_ideal}
        get_event_storage().put_scalars(smoothing_hint=False, **{f"ssl/{name}": v for name, v in metrics.items()})


def trains_on_views(cfg) -> bool:
    """Tell whether MODEL.META_ARCHITECTURE names a method of this kind; False for names that nobody registered."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), SiameseMetaArch)


def _zero_init_residual(backbone: nn.Module) -> None:
    for block in backbone.modules():
        last = {BottleneckBlock: "conv3", BasicBlock: "conv2"}.get(type(block))
        norm = getattr(block, last).norm if last else None
        if isinstance(getattr(norm, "weight", None), nn.Parameter):
            nn.init.zeros_(norm.weight)
