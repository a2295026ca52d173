"""The base of methods that segment images without labels.

Shape shorthand: N images, C decoder channels, K clusters, h,w cells at the finest stride, H,W pixels.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch import build_sem_seg_head
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import resize_logits, resized_labels
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch

__all__ = ["CellSegmentor", "LabelFreeSegmentor"]


class CellSegmentor(SiameseMetaArch):
    """What label-free segmentors have in common in evaluation: logits of cells, resized to the image.

    Attributes:
        cell_stride: pixels of the image per cell.
    """

    output = "semantic"
    cell_stride: int

    @configurable
    def __init__(self, *, predict_labels: bool = False, **kwargs):
        """Store the kind of the result.

        Args:
            predict_labels: return labels instead of logits.
            kwargs: arguments of :class:`SiameseMetaArch`.
        """
        super().__init__(**kwargs)
        self.predict_labels = predict_labels

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "predict_labels": cfg.TEST.SEM_SEG_OUTPUT == "labels"}

    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, K, h, w) of the cells of a normalised and padded image (1, 3, H, W)."""
        raise NotImplementedError

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment whole images.

        Args:
            batched_inputs: dicts with "image", (3, H, W), and optionally "height" and "width" of the result.

        Returns:
            Per image a dict with "sem_seg", the (K, H, W) logits of the clusters, or with ``predict_labels`` a dict
            with "sem_seg_labels" (H, W) and "num_classes".
        """
        return [self._segment(self.cell_logits(self.preprocess_image(x["image"])), x) for x in batched_inputs]

    def _segment(self, z: torch.Tensor, x: dict) -> dict:
        """Return the result of one image ``x`` of :meth:`inference` from the logits (1, K, h, w) of its cells."""
        height, width = crop = tuple(x["image"].shape[-2:])
        size = (x.get("height", height), x.get("width", width))
        padded = (z.shape[2] * self.cell_stride, z.shape[3] * self.cell_stride)
        if self.predict_labels:
            return {"sem_seg_labels": resized_labels(z[0], padded, crop, size), "num_classes": z.shape[1]}
        z = z.contiguous(memory_format=torch.channels_last)  # the evaluator's argmax is several times faster on the CPU
        logits = F.interpolate(z, size=padded, mode="bilinear", align_corners=False)
        return {"sem_seg": resize_logits(logits[0, :, :height, :width], *size)}


class LabelFreeSegmentor(CellSegmentor):
    """A two-view method that uses the feature map of a decoder, and predicts a cluster for each pixel in evaluation.

    The head is a module of SEM_SEG_HEADS_REGISTRY, such as ``PseudoLabelSemSegHead``. It needs ``decode(features)`` ->
    (N, C, h, w), ``layers(features)`` -> cluster logits (N, K, h, w), ``num_classes`` and ``common_stride``.

    Attributes:
        head_name: the only value of MODEL.SEM_SEG_HEAD.NAME that the method works with; "" for any.
    """

    head_name = ""

    @configurable
    def __init__(self, *, sem_seg_head: nn.Module, **kwargs):
        """Store the head.

        Args:
            sem_seg_head: the head; the class docstring says what it needs.
            kwargs: arguments of :class:`CellSegmentor`.
        """
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        name = cfg.MODEL.SEM_SEG_HEAD.NAME
        if cls.head_name in ("", name):
            return []
        return [f"MODEL.SEM_SEG_HEAD.NAME is {name!r}; {cls.__name__} needs {cls.head_name!r}"]

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        return {**ret, "sem_seg_head": build_sem_seg_head(cfg, ret["backbone"].output_shape())}

    def encode(self, x: torch.Tensor, backbone: nn.Module | None = None) -> torch.Tensor:
        """Return the decoder's map (N, C, h, w) of a view (N, 3, H, W)."""
        return self.sem_seg_head.decode((self.backbone if backbone is None else backbone)(x))

    @property
    def cell_stride(self) -> int:
        return self.sem_seg_head.common_stride

    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.sem_seg_head.layers(self.backbone(x))
