"""Frozen features of a backbone, resized and concatenated into one map.

Shape shorthand: H,W pixels of the network's input, s the finest stride, D channels of all features together.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import Backbone, build_backbone
from torch import nn
from torch.nn import functional as F

from densesiam_d2.checkpoint.export import expected_metadata
from densesiam_d2.checkpoint.loading import CheckedCheckpointer

__all__ = ["FrozenFeatures", "build_features", "build_random_features"]


class FrozenFeatures(nn.Module):
    """Some outputs of a backbone in evaluation mode, resized bilinearly to the finest and concatenated.

    Attributes:
        backbone: the network; the attribute is named as in detectors, so that their checkpoints can be loaded.
        stride: s, of the finest output.
        side: of the input for square images, in pixels.
        channels: D.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        names: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        image_format: str,
        size: int,
    ):
        """Store the network.

        Args:
            backbone: the network. If it is an FPN, the outputs of its ``bottom_up`` can be named too.
            names: outputs, such as "res3".
            pixel_mean, pixel_std: of 0-255 values, in the order of ``image_format``.
            image_format: "RGB" or "BGR".
            size: of the short side of the network's input, in pixels; see :meth:`input_size`.

        Raises:
            ValueError: an output does not exist or is named twice, or size is not positive.
        """
        super().__init__()
        self.backbone = backbone.eval()
        self.names = list(names)
        source = backbone
        if hasattr(backbone, "bottom_up") and not set(names) <= backbone.output_shape().keys():
            source = backbone.bottom_up
        self._below_pyramid = source is not backbone
        shapes = source.output_shape()
        if not names or not set(names) <= shapes.keys() or len(set(names)) < len(names):
            more = f" or {', '.join(backbone.output_shape())}" if self._below_pyramid else ""
            raise ValueError(f"features {' '.join(names)}: the backbone gives {', '.join(shapes)}{more}, each once")
        if size < 1:
            raise ValueError(f"size {size} must be positive")
        self.stride = min(shapes[name].stride for name in names)
        self.channels = sum(shapes[name].channels for name in names)
        self._multiple = max(backbone.size_divisibility, *(shapes[name].stride for name in names))
        self._size = size
        self.side = self.input_size(1, 1)[0]
        self._bgr = image_format == "BGR"
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def needs_pyramid(self) -> bool:
        """Whether the whole backbone is used; False if the features come from below an FPN."""
        return not self._below_pyramid

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the network's input for an image of that height and width.

        The short side becomes ``size`` and the long side follows; both are then rounded to multiples of the coarsest
        stride, which changes the aspect ratio slightly.
        """
        factor = self._size / min(height, width) / self._multiple
        return tuple(max(1, round(side * factor)) * self._multiple for side in (height, width))

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @torch.no_grad()
    def forward(self, image: np.ndarray) -> torch.Tensor:
        """Return the features of an image.

        Args:
            image: (H0, W0, 3) uint8 RGB.

        Returns:
            (D, H / s, W / s) float32 on the model's device, with H, W of :meth:`input_size`.
        """
        size = self.input_size(*image.shape[:2])
        image = T.ResizeTransform(*image.shape[:2], *size).apply_image(image)  # Pillow's bilinear, as detectron2 tests
        if self._bgr:
            image = image[:, :, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.pixel_mean.device)
        x = ((x - self.pixel_mean) / self.pixel_std)[None]
        outputs = self.backbone.bottom_up(x) if self._below_pyramid else self.backbone(x)
        cells = tuple(side // self.stride for side in size)
        maps = [F.interpolate(outputs[n], size=cells, mode="bilinear", align_corners=False) for n in self.names]
        return torch.cat(maps, dim=1)[0].float()


def build_features(cfg: CfgNode, names: Sequence[str], *, weights: str, size: int, seed: int) -> FrozenFeatures:
    """Build the backbone of a config and fill it.

    Args:
        cfg, names, size, seed: see :func:`build_random_features`; MODEL.WEIGHTS_STRICT is read as well.
        weights: as MODEL.WEIGHTS; "" keeps the random initialisation.

    Raises:
        ValueError: there are no such outputs, or the weights cannot be read or some are missing.
        FileNotFoundError: there is no such file.
    """
    model = build_random_features(cfg, names, size=size, seed=seed)
    checkpointer = CheckedCheckpointer(
        model,
        expect=expected_metadata(cfg),
        strict=cfg.MODEL.WEIGHTS_STRICT,
        whole_model=model.needs_pyramid,
    )
    checkpointer.resume_or_load(weights, resume=False)
    return model


def build_random_features(cfg: CfgNode, names: Sequence[str], *, size: int, seed: int) -> FrozenFeatures:
    """Build the backbone of a config with random weights.

    Args:
        cfg: MODEL and INPUT.FORMAT are read. A backbone without FPN returns the named outputs; OUT_FEATURES is ignored.
        names: outputs, such as "res3"; for an FPN, outputs of the pyramid or of the network below it.
        size: see :class:`FrozenFeatures`.
        seed: of the random network.

    Raises:
        ValueError: there are no such outputs.
    """
    cfg = cfg.clone()
    cfg.defrost()
    backbone = _build(cfg, seed)
    if not hasattr(backbone, "bottom_up") and list(names) != list(backbone.output_shape()):
        cfg.MODEL.RESNETS.OUT_FEATURES = list(names)
        try:
            backbone = _build(cfg, seed)
        except (KeyError, AssertionError) as error:
            raise ValueError(
                f"features {' '.join(names)}: the backbone does not have all of these outputs; they have names such as "
                "res2, res3, res4, res5"
            ) from error
    return FrozenFeatures(
        backbone=backbone,
        names=names,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        image_format=cfg.INPUT.FORMAT,
        size=size,
    ).to(cfg.MODEL.DEVICE)


def _build(cfg: CfgNode, seed: int) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(cfg)
