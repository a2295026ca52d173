"""Meta-architectures, registered in detectron2's META_ARCH_REGISTRY by import."""

from densesiam_d2.modeling.meta_arch.densesiam import DenseSiam
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch, trains_on_views
from densesiam_d2.modeling.meta_arch.sliding import SlidingSemanticSegmentor

__all__ = ["DenseSiam", "SiameseMetaArch", "SlidingSemanticSegmentor", "trains_on_views"]
