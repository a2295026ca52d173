"""Unsupervised segmentation by the prototypes of SlotCon (NeurIPS 2022, arXiv 2205.15288)."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch.nn import functional as F

from densesiam_d2.layers import resize_logits, resized_labels
from densesiam_d2.modeling.meta_arch.slotcon import SlotCon

__all__ = ["SlotConSegmentor"]


@META_ARCH_REGISTRY.register()
class SlotConSegmentor(SlotCon):
    """SlotCon, trained in the same way, that predicts a cluster for each pixel in evaluation.

    The logits of a pixel are the teacher's scores: the cosines of its projection with the prototypes. The evaluation
    gives each class one cluster, so there should be as many prototypes as classes; pixels of further clusters are
    always wrong. The config keys are those of MODEL.SLOTCON.

    Source: viz_slots.py in CVMI-Lab/SlotCon for the scores. The code of the paper's segmentation is not released.
    """

    output = "semantic"

    @configurable
    def __init__(self, *, predict_labels: bool = False, **kwargs):
        """Store the kind of the result.

        Args:
            predict_labels: return labels instead of logits.
            kwargs: arguments of :class:`SlotCon`.
        """
        super().__init__(**kwargs)
        self.predict_labels = predict_labels

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add nothing; the keys are those that :class:`SlotCon` adds."""

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        slots, clusters = cfg.MODEL.SLOTCON.SLOTS, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if slots == clusters:
            return []
        return [
            f"MODEL.SLOTCON.SLOTS is {slots}, MODEL.SEM_SEG_HEAD.NUM_CLASSES {clusters}; {cls.__name__} needs the same "
            "number, because its prototypes are the clusters"
        ]

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "predict_labels": cfg.TEST.SEM_SEG_OUTPUT == "labels"}

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment whole images.

        Args:
            batched_inputs: dicts with "image", (3, H, W), and optionally "height" and "width" of the result.

        Returns:
            Per image a dict with "sem_seg", the (K, H, W) scores of the prototypes, or with ``predict_labels`` a dict
            with "sem_seg_labels" (H, W) and "num_classes".
        """
        stride, results = self.backbone.output_shape()[self.in_feature].stride, []
        for x in batched_inputs:
            height, width = crop = tuple(x["image"].shape[-2:])
            size = (x.get("height", height), x.get("width", width))
            scores = self.project(self.preprocess_image(x["image"]), self.teacher)[1]  # (1, K, h, w)
            padded = (scores.shape[2] * stride, scores.shape[3] * stride)
            if self.predict_labels:
                labels = resized_labels(scores[0], padded, crop, size)
                results.append({"sem_seg_labels": labels, "num_classes": scores.shape[1]})
            else:
                logits = F.interpolate(scores, size=padded, mode="bilinear", align_corners=False)
                results.append({"sem_seg": resize_logits(logits[0, :, :height, :width], *size)})
        return results
