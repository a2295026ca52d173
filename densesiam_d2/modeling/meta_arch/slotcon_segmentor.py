"""Unsupervised segmentation by the prototypes of SlotCon (NeurIPS 2022, arXiv 2205.15288)."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.modeling.meta_arch.segmentor import segmentation
from densesiam_d2.modeling.meta_arch.slotcon import SlotCon

__all__ = ["SlotConSegmentor"]


@META_ARCH_REGISTRY.register()
class SlotConSegmentor(SlotCon):
    """SlotCon, trained in the same way, that predicts a cluster for each pixel in evaluation.

    The logits of a pixel are the teacher's scores: the cosines of its projection with the prototypes. There may be
    more prototypes than classes; TEST.SEM_SEG_MATCHING "majority" then gives each cluster a class. The config keys are
    those of MODEL.SLOTCON.

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
    def num_clusters(cls, cfg: CfgNode) -> int:
        return cfg.MODEL.SLOTCON.SLOTS

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
            scores = self.project(self.preprocess_image(x["image"]), self.teacher)[1]  # (1, K, h, w)
            results.append(segmentation(scores, stride, x, predict_labels=self.predict_labels))
        return results
