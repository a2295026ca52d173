"""Values that cannot work: one ValueError, naming key and value, and listing all of them."""

import re

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.projects.point_rend import add_pointrend_config

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.config_checks import check_config, without_effect
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator


def _cfg(*opts):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.DATASETS.TRAIN = ("some_train",)
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list(list(opts))
    return cfg


SEGMENTATION = ["MODEL.SEM_SEG_HEAD.NAME", "PseudoLabelSemSegHead"]


def test_defaults_pass():
    check_config(_cfg())


def test_defaults_of_pretraining_and_segmentation_pass():
    check_config(_cfg("MODEL.META_ARCHITECTURE", "DenseSiam"))
    check_config(_cfg("MODEL.META_ARCHITECTURE", "DenseSiamSegmentor", *SEGMENTATION))


BAD = [
    ("INPUT.SSL.VIEW_SIZE", 31, ">= 32"),
    ("INPUT.SSL.PRE_CROP", -1, ">= 0"),
    ("INPUT.SSL.VIEWS", ["crop", "half"], "full"),
    ("INPUT.SSL.VIEWS", ["crop"], "two of"),
    ("INPUT.SSL.CROP_SCALE", [0.0, 1.0], "0 < low"),
    ("INPUT.SSL.CROP_SCALE", [0.5, 0.2], "low <= high"),
    ("INPUT.SSL.CROP_SCALE", [0.5, 1.5], "fractions of the area are <= 1"),
    ("INPUT.SSL.CROP_SCALE_OF", "volume", "area, side, pixels"),
    ("INPUT.SSL.VIEWS", ["same", "crop"], 'or ["crop", "same"]'),
    ("INPUT.SSL.CROP_ASPECT", [1.5, 0.5], "low <= high"),
    ("INPUT.SSL.MIN_OVERLAP", 1.5, "[0, 1]"),
    ("INPUT.SSL.INTERPOLATION", "cubic", "bicubic"),
    ("INPUT.SSL.FLIP_PROB", -0.1, "[0, 1]"),
    ("INPUT.SSL.JITTER", [0.4, 0.4, 0.4], "four numbers"),
    ("INPUT.SSL.JITTER", [0.4, 0.4, 0.4, 0.7], "<= 0.5"),
    ("INPUT.SSL.JITTER_PROB", 2.0, "[0, 1]"),
    ("INPUT.SSL.GRAYSCALE_PROB", 1.01, "[0, 1]"),
    ("INPUT.SSL.BLUR_PROB", [0.5], "two numbers"),
    ("INPUT.SSL.BLUR_PROB", [0.5, 1.5], "[0, 1]"),
    ("INPUT.SSL.BLUR_SIGMA", [2.0, 0.1], "low <= high"),
    ("INPUT.SSL.SOLARIZE_PROB", [-0.5, 0.0], "[0, 1]"),
    ("MODEL.DENSESIAM.PROJ_DIMS", [], "widths"),
    ("MODEL.DENSESIAM.PROJ_DIMS", [512, 0], "widths"),
    ("MODEL.DENSESIAM.PRED_DIM", 0, "> 0"),
    ("MODEL.DENSESIAM.GRID_SIZE", 0, "> 0"),
    ("MODEL.DENSESIAM.GRID_POSITION", "input", "output, feature"),
    ("MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", -1.0, ">= 0"),
    ("MODEL.DENSESIAM.REGION.LOSS", "mse", "infonce, cosine"),
    ("MODEL.DENSESIAM.REGION.TEMPERATURE", 0.0, "> 0"),
    ("MODEL.DENSESIAM.REGION.LOSS_WEIGHT", -0.1, ">= 0"),
    ("MODEL.DENSESIAM.REGION.START", 1.0, "[0, 1)"),
    ("MODEL.DENSESIAM.REGION.PROJ_DIMS", [-1], "widths"),
    ("MODEL.DENSESIAM.REGION.PRED_DIM", 0, "> 0"),
    ("MODEL.PIXPRO.TRANSFORM_LAYERS", 3, "0, 1 or 2"),
    ("MODEL.PIXPRO.SHARPNESS", 0.5, ">= 1"),
    ("MODEL.PIXPRO.POSITIVE_DISTANCE", 0.0, "> 0"),
    ("MODEL.PIXPRO.INSTANCE_WEIGHT", -1.0, ">= 0"),
    ("MODEL.PIXPRO.MOMENTUM", 1.0, "[0, 1)"),
    ("MODEL.RESIM.IN_FEATURES", ["res5"], "at least two"),
    ("MODEL.RESIM.WINDOW_SIZES", [32, 0], "pixels > 0"),
    ("MODEL.RESIM.WINDOW_STRIDES", [], "pixels > 0"),
    ("MODEL.RESIM.GATHER", [2, 3], "True and False"),
    ("DATALOADER.NUM_WORKERS", -2, ">= 0"),
    ("DATALOADER.SAMPLER_TRAIN", "Foo", "TrainingSampler"),
    ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "one of TrainingSampler, RepeatFactorTrainingSampler"),
    ("INPUT.CROP.SIZE", [0, 0], "two numbers > 0"),
    ("INPUT.MASK_FORMAT", "rle", "polygon, bitmask"),
    ("INPUT.MIN_SIZE_TEST", -1, ">= 0"),
    ("INPUT.MIN_SIZE_TRAIN", (), "one or more numbers"),
    ("INPUT.RANDOM_FLIP", "both", "none, horizontal, vertical"),
    ("MODEL.DEVICE", "gpu", "cpu or cuda"),
    ("MODEL.RESNETS.OUT_FEATURES", ["res6"], "res5"),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0, "[0, 1]"),
    ("MODEL.SEM_SEG_HEAD.NAME", "FCN", "the name of a sem_seg_head"),
    ("OUTPUT_DIR", "", "the path of a folder"),
    ("SEED", 2**32, "below 2**32"),
    ("SOLVER.GAMMA", -1.0, "> 0"),
    ("SOLVER.MOMENTUM", 1.0, "[0, 1)"),
    ("SOLVER.REFERENCE_WORLD_SIZE", -1, ">= 0"),
    ("SOLVER.WEIGHT_DECAY", -0.1, ">= 0"),
    ("TEST.BEST_METRIC", "mIoU", "sem_seg/mIoU"),
    ("TEST.BEST_METRIC", "segm/APP", "did you mean segm/AP?"),
    ("TEST.BEST_METRIC", "sem_seg/mIuO", "did you mean sem_seg/mIoU?"),
    ("TEST.BEST_METRIC", "-semseg/pACC", "did you mean sem_seg/pACC?"),
    ("TEST.BEST_METRIC", "masks:/a/b,labels=/c/box/AP", "did you mean bbox/AP?"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [], "numbers > 0 for each feature map"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[]], "numbers > 0 for each feature map"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", ["a"], "numbers > 0 for each feature map"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], 64], "numbers > 0 for each feature map"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[0, 32]], "numbers > 0 for each feature map"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]], "give one list for all, or one for each of the 1 MODEL"),
    ("INPUT.FORMAT", "RBG", "RGB, BGR"),
    ("INPUT.SSL.CROP_SCALE", ["a", "b"], "low <= high"),
    ("INPUT.SSL.JITTER", [2.0, 0.4, 0.4, 0.1], "[0, 1]"),
    ("MODEL.BACKBONE.NAME", "build_resnet_backbon", "the name of a backbone"),
    ("MODEL.META_ARCHITECTURE", "DenseSiamm", "the name of a meta_arch"),
    ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "three numbers > 0"),
    ("MODEL.PIXEL_MEAN", [0.0], "three numbers"),
    ("MODEL.RESNETS.DEPTH", 19, "18, 34, 50"),
    ("MODEL.RESNETS.NORM", "XX", "SyncBN"),
    ("MODEL.SSL.NORM", "SynBN", "SyncBN"),
    ("MODEL.SEM_SEG_HEAD.NORM", "Bn", "SyncBN"),
    ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosine", "WarmupCosineLR"),
    ("SOLVER.POLY_LR_CONSTANT_ENDING", 1.5, "[0, 1]"),
    ("SOLVER.POLY_LR_POWER", 0.0, "> 0"),
    ("SOLVER.STEPS", (5, 1), "ascending"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0, "> 0"),
    ("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", -1.0, ">= 0"),
    ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.AUX_CLASSES", 1, "> 1"),
    ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.NUM_PROJ_CONVS", -1, ">= 0"),
    ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SIMILARITY_WEIGHT", -1.0, ">= 0"),
    ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.START", "k-means", "kmeans"),
    ("MODEL.DENSESIAM.PIXEL.TARGET_TEMPERATURE", 0.0, "> 0"),
    ("MODEL.DENSESIAM.USAGE.LOSS_WEIGHT", -1.0, ">= 0"),
    ("MODEL.DENSESIAM.USAGE.EXPONENT", -1.0, ">= 0"),
    ("SOLVER.BACKBONE_LR_FACTOR", -1.0, ">= 0"),
    ("SOLVER.LAST_LAYERS_LR_FACTOR", -1.0, ">= 0"),
    ("SOLVER.AMP.PRECISION", "fp8", "fp16, bf16"),
    ("SOLVER.BASE_LR", 0.0, "> 0"),
    ("SOLVER.BASE_LR", float("nan"), "> 0"),
    ("SOLVER.BASE_LR", float("inf"), "> 0"),
    ("SOLVER.BASE_LR_END", -0.1, ">= 0"),
    ("SOLVER.IMS_PER_BATCH", 0, "> 0"),
    ("SOLVER.ACCUMULATE", 0, "> 0"),
    ("SOLVER.MAX_ITER", 0, "> 0"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "> 0"),
    ("SOLVER.WARMUP_ITERS", -1, ">= 0"),
    ("TEST.EVAL_PERIOD", -1, ">= 0"),
    ("TEST.SEM_SEG_MATCHING", "majorty", "none, hungarian, hungarian_iou, majority"),
    ("TEST.MONITOR.PERIOD", 0, "> 0"),
    ("TEST.CENTER_CROP_SIZE", -1, ">= 0"),
    ("TEST.SLIDE_WINDOW", -1, ">= 0"),
    ("TEST.SLIDE_STRIDE", -1, ">= 0"),
    ("INPUT.MAX_SIZE_TRAIN", 0, "> 0"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choise", "choice, range"),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [], "numbers > 0 for each feature map"),
    ("MODEL.DEVICE", "mps", "cpu or cuda"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "Foo", "the name of a anchor_generator"),
    ("MODEL.FPN.FUSE_TYPE", "max", "sum, avg"),
    ("MODEL.FPN.NORM", "BatchNorm", "SyncBN"),
    ("MODEL.FPN.OUT_CHANNELS", 0, "> 0"),
    ("MODEL.PIXEL_MEAN", ["a", "b", "c"], "three numbers"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPNN", "such as RPN"),
    ("MODEL.RESNETS.NUM_GROUPS", 0, "> 0"),
    ("MODEL.RESNETS.RES5_DILATION", 3, "1 or 2, or 4"),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l2", "smooth_l1, giou"),
    ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNN", "such as FastRCNNConvFCHead"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3", "ROIAlignV2"),
    ("MODEL.ROI_KEYPOINT_HEAD.NAME", "Foo", "the name of a roi_keypoint_head"),
    ("MODEL.ROI_MASK_HEAD.NAME", "Foo", "the name of a roi_mask_head"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2", "smooth_l1, giou"),
    ("MODEL.RPN.HEAD_NAME", "Foo", "the name of a rpn_head"),
    ("TEST.EXPECTED_RESULTS", [["bbox"]], "such as [['bbox', 'AP', 38.5, 0.2]]"),
    ("MODEL.ROI_HEADS.NAME", "StandartROIHeads", "the name of a roi_head"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "clip", "value, norm"),
    ("SOLVER.STEPS", ("x",), "numbers in ascending order"),
    ("SOLVER.WARMUP_METHOD", "xyz", "linear, constant"),
]


@pytest.mark.parametrize(("key", "value", "text"), BAD)
def test_bad_value_is_named_with_what_it_must_be(key, value, text):
    with pytest.raises(ValueError) as error:
        check_config(_cfg(key, value))
    (line,) = [line for line in str(error.value).splitlines() if line.strip().startswith(f"{key} is ")]
    assert repr(value) in line
    assert text in line


SLIDING = ["MODEL.META_ARCHITECTURE", "SlidingSemanticSegmentor", "TEST.SLIDE_WINDOW", 769]
PICIE = ["MODEL.META_ARCHITECTURE", "PiCIE", "MODEL.SEM_SEG_HEAD.NAME", "CentroidSemSegHead"]
PIXELS = ["MODEL.META_ARCHITECTURE", "KMeansSegmentor", "MODEL.BACKBONE.NAME", "build_pixel_backbone"]
PIXELS += ["SOLVER.WEIGHT_DECAY", 0.0]
COMBINATIONS = [
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "TEST.PRECISE_BN.ENABLED", True],
        "TEST.PRECISE_BN.ENABLED is True",
    ),
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiamSegmentor"],
        "MODEL.SEM_SEG_HEAD.NAME is 'SemSegFPNHead'",
    ),
    (
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES", ["res9"]],
        "MODEL.FPN.IN_FEATURES has 'res9', which is not among MODEL.RESNETS.OUT_FEATURES ['res4']",
    ),
    (["TEST.BEST_METRIC", "-monitor/mIoU"], "TEST.BEST_METRIC is '-monitor/mIoU'; set TEST.MONITOR.DATASET"),
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "DATASETS.TEST", ("scenes_val",)],
        "DATASETS.TEST is ('scenes_val',); DenseSiam predicts nothing to score: set it to ()",
    ),
    ([*SLIDING, "TEST.SLIDE_STRIDE", 0], "TEST.SLIDE_STRIDE is 0"),
    ([*SLIDING, "TEST.SLIDE_STRIDE", 770], "TEST.SLIDE_STRIDE is 770"),
    (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "TEST.SLIDE_WINDOW", 769, "TEST.SLIDE_STRIDE", 769],
        "TEST.SLIDE_WINDOW is 769; only SlidingSemanticSegmentor reads it",
    ),
    (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.START", "kmeans"],
        "PSEUDO_LABEL.START is 'kmeans'; only DenseSiamSegmentor reads it: set 'random' with SemanticSegmentor",
    ),
    ([*PICIE, "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SINKHORN", True], "PSEUDO_LABEL.SINKHORN is True; only DenseSiam"),
    ([*PICIE, "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM", 100], "PSEUDO_LABEL.MERGE_FROM is 100; only DenseSiam"),
    (
        [*PIXELS, "MODEL.PIXEL_MEAN", [0, 0, 0]],
        "MODEL.PIXEL_STD is [1.0, 1.0, 1.0]; colours of build_pixel_backbone need [255, 255, 255]",
    ),
    ([*PIXELS, "MODEL.PIXEL_STD", [255, 255, 255]], "MODEL.PIXEL_MEAN is [103.53, 116.28, 123.675]; colours of"),
    (["SOLVER.BASE_LR", 0.1, "SOLVER.BASE_LR_END", 0.2], "SOLVER.BASE_LR_END is 0.2"),
    (["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"], "SOLVER.AMP.PRECISION is 'fp16'"),
    (["MODEL.META_ARCHITECTURE", "DenseSiam", "INPUT.FORMAT", "BGR"], "INPUT.FORMAT is 'BGR'"),
    (["MODEL.META_ARCHITECTURE", "ReSim", "MODEL.RESIM.GATHER", [True]], "MODEL.RESIM.GATHER has 1 values; give one"),
    (["MODEL.META_ARCHITECTURE", "ReSim", "INPUT.SSL.VIEW_SIZE", 48], "MODEL.RESIM.WINDOW_SIZES is [32, 48]; windows"),
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "INPUT.SSL.VIEWS", ["crop", "same"], "INPUT.SSL.SAME_FLIP", True],
        "INPUT.SSL.SAME_FLIP is True; with VIEWS",
    ),
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "INPUT.SSL.COLOR_ON_DEVICE", True, "INPUT.SSL.COLOR_FIRST", True],
        "INPUT.SSL.COLOR_ON_DEVICE is True; COLOR_FIRST needs",
    ),
    (
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "INPUT.SSL.COLOR_ON_DEVICE", True, "INPUT.SSL.PATCH_GRID", 3],
        "INPUT.SSL.COLOR_ON_DEVICE is True; PATCH_GRID needs",
    ),
    (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
    (["SOLVER.EPOCHS", 5.0, "SOLVER.STEPS", (0.5, 30)], "SOLVER.STEPS is (0.5, 30); with SOLVER.EPOCHS"),
    (["SOLVER.STEPS", (0.5,)], "SOLVER.STEPS is (0.5,); shares of training need SOLVER.EPOCHS"),
    (
        ["SOLVER.EPOCHS", 5.0, "SOLVER.STEPS", (), "SOLVER.WARMUP_EPOCHS", 6.0],
        "SOLVER.WARMUP_EPOCHS is 6.0, above EPOCHS 5",
    ),
    (["SOLVER.OPTIMIZER", "LARS", "SOLVER.NESTEROV", True], "SOLVER.NESTEROV is True; LARS"),
    (["SOLVER.MOMENTUM", 0.0, "SOLVER.NESTEROV", True], "SOLVER.NESTEROV is True; it needs SOLVER.MOMENTUM above 0"),
    (
        ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"],
        "INPUT.CROP.SIZE is [0.9, 0.9]; with TYPE absolute it is in whole pixels",
    ),
    (
        ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [64, 64]],
        "INPUT.CROP.SIZE is [64, 64]; with TYPE relative_range",
    ),
    (["MODEL.RESNETS.RES2_OUT_CHANNELS", 512], "MODEL.RESNETS.RES2_OUT_CHANNELS is 512; a ResNet-50 has 256"),
]
TWICE_AS_WIDE = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 128, "MODEL.RESNETS.RES2_OUT_CHANNELS", 512]


@pytest.mark.parametrize(("opts", "text"), COMBINATIONS)
def test_bad_combination_is_named(opts, text):
    with pytest.raises(ValueError) as error:
        check_config(_cfg(*opts))
    assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 2  # one problem, one line


@pytest.mark.parametrize(
    "opts",
    [
        ["TEST.PRECISE_BN.ENABLED", True],  # transfer recipes use it
        [*SLIDING, "TEST.SLIDE_STRIDE", 769],
        ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16", "MODEL.DEVICE", "cpu"],
        ["SOLVER.AMP.ENABLED", True],
        ["MODEL.META_ARCHITECTURE", "DenseSiam", "DATASETS.TRAIN", ("folder:/x",)],
        ["MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.AUX_CLASSES", 0],
        ["MODEL.DENSESIAM.REGION.LOSS_WEIGHT", 0.0],
        ["MODEL.DEVICE", "cuda:1", "SEED", 2**32 - 1, "INPUT.SSL.VIEW_SIZE", 32, "INPUT.MIN_SIZE_TRAIN", (0,)],
        ["TEST.BEST_METRIC", "-total_loss"],
        ["TEST.BEST_METRIC", "ssl/used_clusters"],  # near sem_seg/used_clusters
        ["TEST.BEST_METRIC", "coco:/a.json/segm/AP50", "DATASETS.TEST", ("coco:/a.json", "b"), "MODEL.MASK_ON", True],
        ["TEST.BEST_METRIC", "segm/AP-a", "DATASETS.TEST", ("a",), "MODEL.MASK_ON", True],
        ["TEST.BEST_METRIC", "roi_head/num_fg_samples"],
        ["MODEL.ANCHOR_GENERATOR.SIZES", [32, 64]],
        [*TWICE_AS_WIDE, "MODEL.RESNETS.WIDTH_PER_GROUP", 128],  # as checkpoint/kinds.py says
        ["MODEL.RESNETS.STEM_OUT_CHANNELS", 128],  # detectron2's DeepLab stem
        ["INPUT.SSL.VIEWS", ["crop", "same"], "INPUT.SSL.CROP_SCALE_OF", "pixels", "INPUT.SSL.CROP_SCALE", [388, 388]],
    ],
)
def test_neighbours_of_bad_values_pass(opts):
    check_config(_cfg(*opts))


def test_every_score_of_the_evaluators_may_be_the_best_metric(catalog):
    MetadataCatalog.get("scored").set(stuff_classes=["a", "b"], ignore_label=255, thing_ids=[0], stuff_ids=[1])
    evaluator = ClusterSemSegEvaluator("scored")
    evaluator.protocol = {}
    names, _ = evaluator._score(np.array([[3, 1], [0, 2]]))
    assert {"mIoU", "mIoU_th_released", "pACC_majority", "IoU-a"} <= set(names)
    instances = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-a"]  # of detectron2's COCOEvaluator
    for kind, scores in (("SemanticSegmentor", {"sem_seg": names}), ("GeneralizedRCNN", {"bbox": instances})):
        for score in (f"{task}/{name}" for task, names in scores.items() for name in names):
            keys = ["MODEL.META_ARCHITECTURE", kind, "DATASETS.TEST", ("scored",)]
            check_config(_cfg("TEST.BEST_METRIC", score, *keys))


@pytest.mark.parametrize(
    ("test", "metric", "text"),
    [
        ((), "bbox/AP", "scores need DATASETS.TEST"),
        (("a", "b"), "bbox/AP", "with 2 test sets it is called 'a/bbox/AP'"),
        (("a",), "a/bbox/AP", "with 1 test sets it is called 'bbox/AP'"),
        (("a",), "sem_seg/mIoU", "this model is scored by bbox"),
        (("a",), "-segm/AP50", "this model is scored by bbox"),
    ],
)
def test_a_score_that_this_run_will_not_have_is_no_best_metric(test, metric, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        check_config(_cfg("TEST.BEST_METRIC", metric, "DATASETS.TEST", test))


def test_several_problems_are_listed_at_once():
    opts = ["INPUT.SSL.VIEW_SIZE", -3, "SOLVER.AMP.PRECISION", "int4", "SOLVER.IMS_PER_BATCH", 7]
    with pytest.raises(ValueError) as error:
        check_config(_cfg(*opts), world_size=2)
    text = str(error.value)
    assert len(text.splitlines()) == 4  # the heading and three problems
    assert "INPUT.SSL.VIEW_SIZE is -3" in text
    assert "SOLVER.AMP.PRECISION is 'int4'" in text
    assert "SOLVER.IMS_PER_BATCH is 7" in text


@pytest.mark.parametrize(
    ("batch", "world_size", "reference", "nearest"),
    [(10, 4, 0, "8 or 12"), (3, 8, 0, "such as 8"), (10, 1, 4, "8 or 12")],
)
def test_batch_that_processes_cannot_share_is_named_with_the_nearest(batch, world_size, reference, nearest):
    cfg = _cfg("SOLVER.IMS_PER_BATCH", batch, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    with pytest.raises(ValueError, match=rf"IMS_PER_BATCH is {batch}.*{nearest}"):
        check_config(cfg, world_size=world_size)


@pytest.mark.parametrize(("batch", "world_size", "reference"), [(12, 1, 0), (16, 4, 0), (12, 4, 1)])
def test_a_batch_that_cannot_be_split_into_equal_parts_is_named(batch, world_size, reference):
    words = ("SOLVER.IMS_PER_BATCH", batch, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    check_config(_cfg(*words, "SOLVER.ACCUMULATE", 2), world_size=world_size)
    with pytest.raises(ValueError, match=rf"ACCUMULATE is 8; the {batch // (reference or world_size)} images of each"):
        check_config(_cfg(*words, "SOLVER.ACCUMULATE", 8), world_size=world_size)


@pytest.mark.parametrize("method", ["SimCLR", "SlotCon", "SlotConSegmentor", "ReSim", "IIC"])
def test_methods_that_compare_the_images_of_a_batch_refuse_to_split_it(method):
    words = ("MODEL.META_ARCHITECTURE", method, "MODEL.SEM_SEG_HEAD.NAME", "IICHead")
    check_config(_cfg(*words))
    with pytest.raises(ValueError, match=rf"ACCUMULATE is 2; {method} compares the images of a batch.*: set 1"):
        check_config(_cfg(*words, "SOLVER.ACCUMULATE", 2))


def test_the_usage_of_clusters_needs_the_whole_batch():
    words = ("MODEL.META_ARCHITECTURE", "DenseSiamSegmentor", *SEGMENTATION, "SOLVER.ACCUMULATE", 2)
    check_config(_cfg(*words))
    with pytest.raises(ValueError, match=r"USAGE\.LOSS_WEIGHT is 0\.5.*set SOLVER\.ACCUMULATE 1, not 2"):
        check_config(_cfg(*words, "MODEL.DENSESIAM.USAGE.LOSS_WEIGHT", 0.5))
    with pytest.raises(ValueError, match=r"PSEUDO_LABEL\.SINKHORN is True.*set SOLVER\.ACCUMULATE 1, not 2"):
        check_config(_cfg(*words, "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SINKHORN", True))


def test_evaluation_needs_neither_training_data_nor_a_fitting_batch():
    test = ("DATASETS.TEST", ("scenes_val",))
    check_config(_cfg("DATASETS.TRAIN", (), "SOLVER.IMS_PER_BATCH", 7, *test), world_size=2, eval_only=True)
    method = ("MODEL.META_ARCHITECTURE", "IIC", "MODEL.SEM_SEG_HEAD.NAME", "IICHead")
    check_config(_cfg(*method, "SOLVER.ACCUMULATE", 2, *test), eval_only=True)
    with pytest.raises(ValueError, match="TEST is empty"):
        check_config(_cfg("DATASETS.TEST", ()), eval_only=True)


def test_evaluation_on_the_cpu_takes_a_recipe_in_fp16():
    amp = ("SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu")
    check_config(_cfg("DATASETS.TEST", ("scenes_val",), *amp), eval_only=True)


BF16 = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16")


@pytest.mark.parametrize("words", [("MODEL.DEVICE", "cpu"), ("MODEL.DEVICE", "cuda", "MODEL.SSL.NORM", "naiveSyncBN")])
def test_norms_that_bf16_makes_inaccurate_are_refused(words):
    cfg = _cfg("MODEL.META_ARCHITECTURE", "SimSiam", *BF16, *words)
    check_config(cfg, world_size=1)
    with pytest.raises(
        ValueError, match=r"PRECISION is 'bf16'; MODEL\..*NORM is then inaccurate over several processes"
    ):
        check_config(cfg, world_size=2)


@pytest.mark.parametrize(
    "words",
    [
        ("MODEL.META_ARCHITECTURE", "SimSiam", "MODEL.DEVICE", "cuda"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.DEVICE", "cpu"),  # norms of the heads are not its own
    ],
)
def test_bf16_on_several_processes_passes(words):
    check_config(_cfg(*BF16, *words), world_size=2)


@pytest.mark.parametrize("key", ["USAGE.LOSS_WEIGHT", "PIXEL.TARGET_TEMPERATURE", "WHOLE_CELLS"])
def test_keys_of_segmentation_are_refused_in_pretraining(key):
    value = {"WHOLE_CELLS": True}.get(key, 0.5)
    with pytest.raises(ValueError, match=rf"MODEL\.DENSESIAM\.{key} is {value}; only DenseSiamSegmentor uses it"):
        check_config(_cfg("MODEL.META_ARCHITECTURE", "DenseSiam", f"MODEL.DENSESIAM.{key}", value))


def test_the_loss_of_images_is_refused_in_segmentation():
    words = ("MODEL.META_ARCHITECTURE", "DenseSiamSegmentor", *SEGMENTATION)
    with pytest.raises(ValueError, match=r"MODEL\.DENSESIAM\.IMAGE\.LOSS_WEIGHT is 1\.0; only DenseSiam uses it"):
        check_config(_cfg(*words, "MODEL.DENSESIAM.IMAGE.LOSS_WEIGHT", 1.0))


def test_keys_misspelt_in_python_are_found():
    cfg = _cfg()
    cfg.SOLVER.BASE_LRR = 0.1
    cfg.MODEL.MY_OWN_HEAD = CfgNode({"WIDTH": 3})  # of somebody's extension
    with pytest.raises(ValueError, match=r"no key SOLVER\.BASE_LRR; did you mean SOLVER\.BASE_LR\?") as raised:
        check_config(cfg)
    assert "MY_OWN_HEAD" not in str(raised.value)


def test_keys_of_another_project_are_no_misspelt_ones():
    cfg = _cfg()
    add_pointrend_config(cfg)  # with MODEL.POINT_HEAD.NUM_CLASSES and MODEL.ROI_MASK_HEAD.FC_DIM
    check_config(cfg)


VIEWS, CLASSES = ["MODEL.SSL.CHECKPOINT_STAGES", "INPUT.SSL.VIEW_SIZE"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


@pytest.mark.parametrize(
    ("method", "backbone", "unread"),
    [
        ("DenseSiam", "build_torchvision_backbone", ["MODEL.RESNETS.DEPTH", "MODEL.MOCO.MOMENTUM", CLASSES]),
        ("DenseSiamSegmentor", "build_resnet_backbone", ["MODEL.TORCHVISION.NAME", "MODEL.MOCO.MOMENTUM"]),
        (
            "DenseCL",
            "build_resnet_backbone",
            ["MODEL.TORCHVISION.NAME", "MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", CLASSES],
        ),
        (
            "GeneralizedRCNN",
            "build_torchvision_fpn_backbone",
            ["MODEL.RESNETS.DEPTH", "MODEL.MOCO.MOMENTUM", "MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", *VIEWS],
        ),
        (
            "SlotConSegmentor",
            "build_resnet_backbone",
            ["MODEL.TORCHVISION.NAME", "MODEL.MOCO.MOMENTUM", "MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", CLASSES],
        ),
    ],
)
def test_keys_that_the_model_does_not_read_are_found(method, backbone, unread):
    keys = ["MODEL.RESNETS.DEPTH", "MODEL.RESNETS.OUT_FEATURES", "MODEL.TORCHVISION.NAME", "MODEL.MOCO.MOMENTUM"]
    keys += ["MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", "SOLVER.BASE_LR", *VIEWS, CLASSES]
    cfg = _cfg("MODEL.META_ARCHITECTURE", method, "MODEL.BACKBONE.NAME", backbone)
    assert without_effect(cfg, keys) == unread


def test_unknown_kind_of_brightness_is_named():
    with pytest.raises(ValueError, match=r"JITTER_BRIGHTNESS is 'subtract'; it must be one of multiply, add"):
        check_config(_cfg("INPUT.SSL.JITTER_BRIGHTNESS", "subtract"))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("INPUT.SSL.BLUR_SIGMA", [-1.0, 0.0], "high > 0"),
        ("INPUT.SSL.CROP_ASPECT", [0.0, 1.0], "0 < low"),
        ("INPUT.SSL.SOLARIZE_PROB", [0.0], "two numbers"),
        ("INPUT.WHITE_LEVEL", 0, "[1, 65535]"),
    ],
)
def test_bad_value_of_the_input_is_named(key, value, text):
    with pytest.raises(ValueError) as error:
        check_config(_cfg(key, value))
    assert f"{key} is {value!r}; it must be" in str(error.value) and text in str(error.value)


def test_epochs_need_the_sampler_whose_images_are_counted():
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    with pytest.raises(
        ValueError, match=r"SOLVER\.EPOCHS is 12\.0; it needs DATALOADER\.SAMPLER_TRAIN TrainingSampler"
    ):
        check_config(_cfg(*sampler, "SOLVER.EPOCHS", 12.0))


def test_pretraining_has_one_sampler():
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    check_config(_cfg(*sampler))  # of a labelled training
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is 'RepeatFactorTrainingSampler', which needs annotations"):
        check_config(_cfg("MODEL.META_ARCHITECTURE", "DenseSiam", *sampler))
