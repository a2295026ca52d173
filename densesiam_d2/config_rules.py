"""What values the keys may have that several methods share; the rules of a method's own keys are in its file."""

import math
import re

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.utils.registry import Registry

from densesiam_d2.data.augmentation import INTERPOLATIONS
from densesiam_d2.evaluation.matching import MATCHINGS
from densesiam_d2.image_io import WHITE_LEVEL
from densesiam_d2.modeling.backbone import torchvision_cnns
from densesiam_d2.rules import (
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    PROBABILITY_PAIR,
    SHARE_BELOW_1,
    Rule,
    all_of,
    one_of,
)

__all__ = ["RULES"]


def _registered_in(registry: Registry) -> Rule:
    return lambda v: v in registry, f"the name of a {registry._name.lower().removesuffix('s')}"


def _anchors(sizes: list) -> bool:
    """Tell whether sizes are numbers > 0, or such numbers for each feature map."""
    of_maps = sizes if sizes and isinstance(sizes[0], list | tuple) else [sizes]
    return all_of(all_of(lambda v: v > 0))(of_maps)


_NORM = one_of("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_POOLER = one_of("ROIAlignV2", "ROIAlign", "ROIAlignRotated", "ROIPool")

RULES: dict[str, Rule] = {
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "DATALOADER.SAMPLER_TRAIN": one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    "INPUT.CROP.SIZE": (all_of(lambda v: v > 0, 2), "two numbers > 0"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.FORMAT": one_of("RGB", "BGR"),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "INPUT.MAX_SIZE_TEST": POSITIVE,
    "INPUT.MAX_SIZE_TRAIN": POSITIVE,
    "INPUT.MIN_SIZE_TEST": NOT_NEGATIVE,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MIN_SIZE_TRAIN": (all_of(lambda v: v >= 0), "one or more numbers >= 0"),
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical"),
    "INPUT.WHITE_LEVEL": (lambda v: 1 <= v <= WHITE_LEVEL, f"in [1, {WHITE_LEVEL}]"),
    "INPUT.SSL.VIEW_SIZE": (lambda v: v >= 32, ">= 32, the stride of the backbones"),
    "INPUT.SSL.PRE_CROP": NOT_NEGATIVE,
    "INPUT.SSL.VIEWS": (
        lambda v: list(v) == ["crop", "same"] or (len(v) == 2 and set(v) <= {"crop", "full"}),
        'two of "crop", "full", or ["crop", "same"]',
    ),
    "INPUT.SSL.CROP_SCALE": (lambda v: len(v) == 2 and 0 < v[0] <= v[1], "[low, high] with 0 < low <= high"),
    "INPUT.SSL.CROP_SCALE_OF": one_of("area", "side", "pixels"),
    "INPUT.SSL.CROP_ASPECT": (lambda v: len(v) == 2 and 0 < v[0] <= v[1], "[low, high] with 0 < low <= high"),
    "INPUT.SSL.MIN_OVERLAP": PROBABILITY,
    "INPUT.SSL.INTERPOLATION": one_of(*INTERPOLATIONS),
    "INPUT.SSL.FLIP_PROB": PROBABILITY,
    "INPUT.SSL.JITTER": (
        lambda v: len(v) == 4 and min(v) >= 0 and max(v[:3]) <= 1 and v[3] <= 0.5,
        "four numbers in [0, 1], the last <= 0.5",
    ),
    "INPUT.SSL.JITTER_BRIGHTNESS": one_of("multiply", "add"),
    "INPUT.SSL.JITTER_PROB": PROBABILITY,
    "INPUT.SSL.GRAYSCALE_PROB": PROBABILITY,
    "INPUT.SSL.BLUR_PROB": PROBABILITY_PAIR,
    "INPUT.SSL.BLUR_SIGMA": (
        lambda v: len(v) == 2 and v[0] <= v[1] and v[1] > 0,
        "[low, high] with low <= high and high > 0",
    ),
    "INPUT.SSL.SOLARIZE_PROB": PROBABILITY_PAIR,
    "INPUT.SSL.PATCH_GRID": NOT_NEGATIVE,
    "INPUT.SSL.PATCH_SIZE": POSITIVE,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (
        _anchors,
        "a list of numbers > 0 for each feature map, such as [[0.5, 1.0, 2.0]]",
    ),
    "MODEL.ANCHOR_GENERATOR.NAME": _registered_in(ANCHOR_GENERATOR_REGISTRY),
    "MODEL.ANCHOR_GENERATOR.SIZES": (_anchors, "a list of numbers > 0 for each feature map, such as [[32], [64]]"),
    "MODEL.BACKBONE.NAME": _registered_in(BACKBONE_REGISTRY),
    "MODEL.DEVICE": (lambda v: re.fullmatch(r"(cpu|cuda)(:\d+)?", v), "cpu or cuda"),
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.FPN.NORM": _NORM,
    "MODEL.FPN.OUT_CHANNELS": POSITIVE,
    "MODEL.META_ARCHITECTURE": _registered_in(META_ARCH_REGISTRY),
    "MODEL.PIXEL_MEAN": (all_of(math.isfinite, 3), "three numbers"),
    "MODEL.PIXEL_STD": (all_of(lambda v: v > 0, 3), "three numbers > 0"),
    "MODEL.PROPOSAL_GENERATOR.NAME": (
        lambda v: v == "PrecomputedProposals" or v in PROPOSAL_GENERATOR_REGISTRY,
        "the name of a proposal generator, such as RPN",
    ),
    "MODEL.RESNETS.DEPTH": (lambda v: v in (18, 34, 50, 101, 152), "one of 18, 34, 50, 101, 152"),
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.NUM_GROUPS": POSITIVE,
    "MODEL.RESNETS.RES5_DILATION": (lambda v: v in (1, 2, 4), "1 or 2, or 4 with build_resnet_deeplab_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (
        all_of(lambda v: v in ("stem", "res2", "res3", "res4", "res5")),
        "one or more of stem, res2, res3, res4, res5",
    ),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.NAME": (
        lambda v: not v or v in ROI_BOX_HEAD_REGISTRY,
        "the name of a roi_box_head, such as FastRCNNConvFCHead",
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_HEADS.NAME": _registered_in(ROI_HEADS_REGISTRY),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": _registered_in(ROI_KEYPOINT_HEAD_REGISTRY),
    "MODEL.ROI_MASK_HEAD.NAME": _registered_in(ROI_MASK_HEAD_REGISTRY),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RPN.HEAD_NAME": _registered_in(RPN_HEAD_REGISTRY),
    "MODEL.SSL.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.NAME": _registered_in(SEM_SEG_HEADS_REGISTRY),
    "MODEL.SEM_SEG_HEAD.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": POSITIVE,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.AUX_CLASSES": (lambda v: v == 0 or v > 1, "0 (none) or > 1"),
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM": NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.NUM_PROJ_CONVS": NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SIMILARITY_WEIGHT": NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.START": one_of("random", "kmeans"),
    "MODEL.TORCHVISION.NAME": (
        lambda v: v in torchvision_cnns(),
        "the name of a CNN in torchvision.models with features at whole strides, such as mobilenet_v2 or resnet18",
    ),
    "MODEL.TORCHVISION.NORM": one_of("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN"),
    "OUTPUT_DIR": (bool, "the path of a folder"),
    "RUN.DIST_TIMEOUT_SECONDS": POSITIVE,
    "RUN.MAX_DROPPED_STEPS": POSITIVE,
    "RUN.MAX_UNREADABLE": PROBABILITY,
    "RUN.WATCHDOG_SECONDS": NOT_NEGATIVE,
    "SEED": (lambda v: v < 2**32, "below 2**32 (below 0: another one in each run)"),
    "SOLVER.ACCUMULATE": POSITIVE,
    "SOLVER.ADAMW.BETAS": (all_of(lambda v: 0 <= v < 1, 2), "two numbers in [0, 1)"),
    "SOLVER.ADAMW.EPS": POSITIVE,
    "SOLVER.AMP.PRECISION": one_of("fp16", "bf16"),
    "SOLVER.BASE_LR": (lambda v: v > 0 and math.isfinite(v), "> 0"),
    "SOLVER.BASE_LR_END": NOT_NEGATIVE,
    "SOLVER.EPOCHS": (lambda v: v >= 0 and math.isfinite(v), ">= 0"),
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.IMS_PER_BATCH": POSITIVE,
    "SOLVER.BACKBONE_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.LAST_LAYERS_LR_FACTOR": NOT_NEGATIVE,
    "SOLVER.LARS.EPS": NOT_NEGATIVE,
    "SOLVER.LARS.TRUST_COEFFICIENT": POSITIVE,
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupConstantLR", "WarmupPolyLR"
    ),
    "SOLVER.MAX_ITER": POSITIVE,
    "SOLVER.MOMENTUM": SHARE_BELOW_1,
    "SOLVER.OPTIMIZER": one_of("SGD", "AdamW", "LARS"),
    "SOLVER.POLY_LR_CONSTANT_ENDING": PROBABILITY,
    "SOLVER.POLY_LR_POWER": POSITIVE,
    "SOLVER.REFERENCE_WORLD_SIZE": NOT_NEGATIVE,
    "SOLVER.STEPS": (
        lambda v: all(isinstance(step, int | float) for step in v) and list(v) == sorted(v),
        "numbers in ascending order",
    ),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm"),
    "SOLVER.CHECKPOINT_KEEP_EVERY": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_KEEP_LAST": NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": POSITIVE,
    "SOLVER.WARMUP_EPOCHS": (lambda v: v >= 0 and math.isfinite(v), ">= 0"),
    "SOLVER.NUM_DECAYS": POSITIVE,
    "SOLVER.WARMUP_ITERS": NOT_NEGATIVE,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "TEST.BEST_METRIC": (
        lambda v: not v or "/" in v or v.removeprefix("-").startswith(("loss_", "total_loss", "lr")),
        'empty, a score such as "sem_seg/mIoU" or "segm/AP", or a number that training logs, such as "total_loss"',
    ),
    "TEST.EVAL_PERIOD": NOT_NEGATIVE,
    "TEST.EXPECTED_RESULTS": (
        lambda v: all(len(x) == 4 for x in v),
        "a list of tasks, scores, values and tolerances, such as [['bbox', 'AP', 38.5, 0.2]]",
    ),
    "TEST.SEM_SEG_MATCHING": one_of("none", *MATCHINGS),
    "TEST.MONITOR.PERIOD": POSITIVE,
    "TEST.PATIENCE": NOT_NEGATIVE,
    "TEST.PROBE.PERIOD": POSITIVE,
    "TEST.PROBE.SIZE": POSITIVE,
    "TEST.SEM_SEG_OUTPUT": one_of("logits", "labels"),
    "TEST.CENTER_CROP_SIZE": NOT_NEGATIVE,
    "TEST.SLIDE_WINDOW": NOT_NEGATIVE,
    "TEST.SLIDE_STRIDE": NOT_NEGATIVE,
}
