"""Meta-architectures, registered in detectron2's META_ARCH_REGISTRY by import."""

from densesiam_d2.modeling.meta_arch.byol import BYOL
from densesiam_d2.modeling.meta_arch.clustering_segmentor import ClusteringSegmentor
from densesiam_d2.modeling.meta_arch.densecl import DenseCL
from densesiam_d2.modeling.meta_arch.densesiam import DenseSiam
from densesiam_d2.modeling.meta_arch.densesiam_segmentor import DenseSiamSegmentor
from densesiam_d2.modeling.meta_arch.detco import DetCo
from densesiam_d2.modeling.meta_arch.iic import IIC
from densesiam_d2.modeling.meta_arch.kmeans_segmentor import KMeansSegmentor
from densesiam_d2.modeling.meta_arch.moco import MoCo
from densesiam_d2.modeling.meta_arch.modified_deepcluster import ModifiedDeepCluster
from densesiam_d2.modeling.meta_arch.output import builds, model_output, num_label_ids, trains_on_views
from densesiam_d2.modeling.meta_arch.picie import PiCIE
from densesiam_d2.modeling.meta_arch.pixpro import PixPro
from densesiam_d2.modeling.meta_arch.resim import ReSim
from densesiam_d2.modeling.meta_arch.segmentor import LabelFreeSegmentor
from densesiam_d2.modeling.meta_arch.siamese import SiameseMetaArch
from densesiam_d2.modeling.meta_arch.simclr import SimCLR
from densesiam_d2.modeling.meta_arch.simsiam import SimSiam
from densesiam_d2.modeling.meta_arch.sliding import SlidingSemanticSegmentor
from densesiam_d2.modeling.meta_arch.slotcon import SlotCon
from densesiam_d2.modeling.meta_arch.slotcon_segmentor import SlotConSegmentor

# All methods. config.py adds the keys of each, config_checks.py applies its rules, and the contract tests run it.
METHODS = (
    DenseSiam,
    DenseSiamSegmentor,
    SimSiam,
    BYOL,
    SimCLR,
    MoCo,
    DenseCL,
    DetCo,
    SlotCon,
    PixPro,
    ReSim,
    SlotConSegmentor,
    PiCIE,
    ModifiedDeepCluster,
    IIC,
)

# Systems that do not learn; they have keys and rules too.
BASELINES = (KMeansSegmentor,)

__all__ = [
    "BASELINES",
    "METHODS",
    "ClusteringSegmentor",
    "KMeansSegmentor",
    "LabelFreeSegmentor",
    "SiameseMetaArch",
    "SlidingSemanticSegmentor",
    "builds",
    "model_output",
    "num_label_ids",
    "trains_on_views",
    *(method.__name__ for method in METHODS),
]
