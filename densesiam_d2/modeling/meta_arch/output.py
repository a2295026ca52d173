"""Read from the class of a config's model what it is trained on and what it predicts."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor

from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch

__all__ = ["builds", "model_output", "num_label_ids", "trains_on_views"]


def trains_on_views(cfg: CfgNode) -> bool:
    """Tell whether MODEL.META_ARCHITECTURE trains on two views of unlabelled images; False for unknown names."""
    return builds(cfg, SiameseMetaArch)


def model_output(cfg: CfgNode) -> str | None:
    """Return what MODEL.META_ARCHITECTURE predicts in evaluation.

    Returns:
        "features", "semantic" (a class or cluster for each pixel), "instances" (boxes, masks), or None for an unknown
        model. For two-view methods it is the class attribute ``output``.
    """
    if trains_on_views(cfg):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).output
    if builds(cfg, SemanticSegmentor):
        return "semantic"
    return "instances" if builds(cfg, GeneralizedRCNN) else None


def num_label_ids(cfg: CfgNode) -> int:
    """Return how many ids the label maps of a model with the output "semantic" have: its classes or clusters."""
    if trains_on_views(cfg):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).num_clusters(cfg)
    return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def builds(cfg: CfgNode, base: type) -> bool:
    """Tell whether MODEL.META_ARCHITECTURE is a class or one derived from it; False for unknown names."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), base)
