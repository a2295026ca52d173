"""Values that cannot work, found before anything is built."""

import difflib
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from densesiam_d2.config import add_densesiam_config, all_keys
from densesiam_d2.config_rules import RULES
from densesiam_d2.data.path_datasets import UNLABELLED_PREFIXES
from densesiam_d2.evaluation.matching import MATCHINGS
from densesiam_d2.modeling import BASELINES, METHODS, SlidingSemanticSegmentor, builds, model_output, trains_on_views
from densesiam_d2.rules import Rule

__all__ = ["ConfigError", "check_config", "check_values", "without_effect"]

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SEM_SEG = (
    *("mIoU", "mIoU_present", "pACC", "mACC", "used_clusters", "largest_cluster"),
    *(f"{name}_{matching}" for name in ("mIoU", "pACC", "unmatched_classes") for matching in MATCHINGS),
    *(f"mIoU_{group}_{reading}" for group in ("th", "st") for reading in ("full", "block", "released")),
)
# What is before the last slash of a score -> its names, besides those with a class, such as AP-car.
_SCORES = {
    "bbox": _AP,
    "segm": _AP,
    "sem_seg": _SEM_SEG,
    "monitor": _SEM_SEG,
    "probe": ("mIoU", "pACC", "start_mIoU", "start_pACC"),
}


class ConfigError(ValueError):
    """A value of the config does not fit another part, which shows only when the model is built."""


def check_config(cfg: CfgNode, *, world_size: int = 1, eval_only: bool = False) -> None:
    """Raise one error that lists every impossible value with its key.

    Args:
        cfg: a merged config.
        world_size: number of processes that will train.
        eval_only: leave out what only training needs.

    Raises:
        ValueError: at least one value cannot work.
    """
    _raise(_wrong_values(cfg) + _combinations(cfg) + (_evaluation(cfg) if eval_only else _training(cfg, world_size)))


def check_values(cfg: CfgNode) -> None:
    """Raise one error that lists every value that no run can have; for tools that do not train.

    Raises:
        ValueError: there is one.
    """
    _raise(_wrong_values(cfg))


def without_effect(cfg: CfgNode, keys: list[str]) -> list[str]:
    """Return those keys, such as the ones of a command line, that a config's method or backbone does not read."""
    unread = {"MODEL.RESNETS" if "torchvision" in cfg.MODEL.BACKBONE.NAME else "MODEL.TORCHVISION"}
    methods = {section for method in METHODS + BASELINES for section in _sections(method)}
    if trains_on_views(cfg):
        unread |= methods - _sections(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE))
    elif model_output(cfg):
        unread |= methods | {"MODEL.SSL", "INPUT.SSL"}
    if model_output(cfg) == "features" or cfg.MODEL.META_ARCHITECTURE == "SlotConSegmentor":  # they have no such head
        unread.add("MODEL.SEM_SEG_HEAD")
    # Every backbone reads this one.
    return [key for key in keys if _section(key) in unread and key != "MODEL.RESNETS.OUT_FEATURES"]


def _section(key: str) -> str:
    return ".".join(key.split(".")[:2])


def _sections(method: type) -> set[str]:
    """Return the sections, such as "MODEL.MOCO", that a method and its bases have rules for."""
    return {_section(key) for base in method.__mro__ for key in getattr(base, "RULES", ())}


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("the config cannot work:\n  " + "\n  ".join(problems))


def _wrong_values(cfg: CfgNode) -> list[str]:
    problems = _misspelt(cfg)
    for key, (check, text) in _all_rules().items():
        value = attrgetter(key)(cfg)
        if not _holds(check, value):
            problems.append(f"{key} is {value!r}; it must be {text}")
    return problems


def _all_rules() -> dict[str, Rule]:
    """Return the rules of the common keys and of every method's own."""
    rules = dict(RULES)
    for method in METHODS + BASELINES:
        rules |= method.RULES
    return rules


def _misspelt(cfg: CfgNode) -> list[str]:
    """Find keys that were set in Python under a slightly wrong name; keys of other projects are accepted.

    A CfgNode takes any name that is set in Python, so a misspelt one would have no effect and give no error. Names are
    compared inside their section, because a wrong section fails by itself in Python.
    """
    schema = get_cfg()
    add_densesiam_config(schema)
    known = set(all_keys(schema))
    problems = []
    for key in sorted(set(all_keys(cfg)) - known):
        section, _, name = key.rpartition(".")
        names = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
        problems += [f"there is no key {key}; did you mean {f'{section}.'.lstrip('.')}{other}?" for other in near]
    return problems


def _misspelt_score(metric: str) -> list[str]:
    """Find a TEST.BEST_METRIC that is nearly the name of a score; other names may be numbers that training logs."""
    name = "/".join(metric.removeprefix("-").split("/")[-2:])  # a data set may stand before it
    task, _, score = name.partition("/")
    tasks = difflib.get_close_matches(task, _SCORES, n=1)
    if not tasks or "-" in score:
        return []
    near = difflib.get_close_matches(name, [f"{tasks[0]}/{known}" for known in _SCORES[tasks[0]]], n=1, cutoff=0.8)
    if near in ([], [name]):
        return []
    return [f"TEST.BEST_METRIC is {metric!r}; there is no such score; did you mean {near[0]}?"]


def _unknown_score(cfg: CfgNode) -> list[str]:
    """Find a TEST.BEST_METRIC that is the score of a test set, but one that this run will not have."""
    names, metric = cfg.DATASETS.TEST, cfg.TEST.BEST_METRIC
    before, _, score = metric.removeprefix("-").rpartition("/")
    dataset, _, task = before.rpartition("/")
    if task not in ("bbox", "segm", "sem_seg"):
        return []
    if not names:
        return [f"TEST.BEST_METRIC is {metric!r}; scores need DATASETS.TEST"]
    if dataset not in (names if len(names) > 1 else ("",)):
        example = f"{names[0]}/{task}/{score}" if len(names) > 1 else f"{task}/{score}"
        return [f"TEST.BEST_METRIC is {metric!r}; with {len(names)} test sets it is called {example!r}"]
    known = {"semantic": ["sem_seg"], "instances": ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON}.get(model_output(cfg), [])
    scored = " and ".join(known) or "nothing"
    return [] if task in known else [f"TEST.BEST_METRIC is {metric!r}; this model is scored by {scored}"]


def _holds(check: Callable[[Any], bool], value: Any) -> bool:
    try:
        return check(value)
    except TypeError:  # words where numbers belong
        return False


def _evaluation(cfg: CfgNode) -> list[str]:
    return [] if cfg.DATASETS.TEST else ["DATASETS.TEST is empty; --eval-only needs a data set"]


def _combinations(cfg: CfgNode) -> list[str]:
    """Find values that are right by themselves, but not together."""
    method = _views(cfg) if trains_on_views(cfg) else _labelled(cfg)
    return _input_and_backbone(cfg) + _pseudo_labels(cfg) + method + _test(cfg) + _solver(cfg)


def _input_and_backbone(cfg: CfgNode) -> list[str]:
    problems, resnets, ssl = [], cfg.MODEL.RESNETS, cfg.INPUT.SSL
    if ssl.CROP_SCALE_OF != "pixels" and _holds(lambda v: max(v, default=0) > 1, ssl.CROP_SCALE):
        problems.append(f"INPUT.SSL.CROP_SCALE is {ssl.CROP_SCALE!r}; fractions of the {ssl.CROP_SCALE_OF} are <= 1")
    sizes, maps = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.RPN.IN_FEATURES
    wrong_number = _holds(lambda v: 1 < len(v) != len(maps) and all(isinstance(x, list | tuple) for x in v), sizes)
    if wrong_number and model_output(cfg) == "instances":
        problems.append(
            f"MODEL.ANCHOR_GENERATOR.SIZES is {sizes}; give one list for all, or one for each of the {len(maps)} "
            "MODEL.RPN.IN_FEATURES"
        )
    crop, in_pixels = cfg.INPUT.CROP, cfg.INPUT.CROP.TYPE.startswith("absolute")
    if crop.ENABLED and not _holds(lambda v: all(isinstance(x, int) if in_pixels else x <= 1 for x in v), crop.SIZE):
        unit = "whole pixels" if in_pixels else "shares of the image, <= 1"
        problems.append(f"INPUT.CROP.SIZE is {crop.SIZE}; with TYPE {crop.TYPE} it is in {unit}")
    widths = [64] if resnets.DEPTH < 50 else sorted({256, 4 * resnets.STEM_OUT_CHANNELS})
    if "resnet" in cfg.MODEL.BACKBONE.NAME and resnets.RES2_OUT_CHANNELS not in widths:
        problems.append(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {resnets.RES2_OUT_CHANNELS}; a ResNet-{resnets.DEPTH} has "
            + " or ".join(map(str, widths))
        )
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in resnets.OUT_FEATURES]
    if unknown and cfg.MODEL.BACKBONE.NAME in ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"):
        problems.append(
            f"MODEL.FPN.IN_FEATURES has {unknown[0]!r}, which is not among MODEL.RESNETS.OUT_FEATURES "
            f"{list(resnets.OUT_FEATURES)}"
        )
    return problems


def _pseudo_labels(cfg: CfgNode) -> list[str]:
    problems = []
    name, pseudo_label = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL
    for key, is_set, unused in (
        ("MERGE_FROM", pseudo_label.MERGE_FROM > 0, 0),
        ("START", pseudo_label.START == "kmeans", "random"),
        ("SINKHORN", pseudo_label.SINKHORN, False),
    ):
        if is_set and name != "DenseSiamSegmentor":
            problems.append(
                f"MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.{key} is {pseudo_label[key]!r}; only DenseSiamSegmentor reads it: "
                f"set {unused!r} with {name}"
            )
    return problems


def _labelled(cfg: CfgNode) -> list[str]:
    bare = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n.startswith(UNLABELLED_PREFIXES)]
    return [f"DATASETS has {bare[0]!r}, without labels; {cfg.MODEL.META_ARCHITECTURE} needs labels"] if bare else []


def _views(cfg: CfgNode) -> list[str]:
    problems, ssl = [], cfg.INPUT.SSL
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        problems.append(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, which needs annotations; pretraining "
            "has 'TrainingSampler' only"
        )
    if cfg.INPUT.FORMAT != "RGB":
        problems.append(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; views are RGB: set 'RGB', also in PIXEL_MEAN and PIXEL_STD"
        )
    if list(ssl.VIEWS) == ["crop", "same"] and ssl.SAME_FLIP:
        problems.append('INPUT.SSL.SAME_FLIP is True; with VIEWS ["crop", "same"] only view 2 is flipped: set False')
    if ssl.COLOR_ON_DEVICE and (ssl.COLOR_FIRST or ssl.PATCH_GRID):
        key = "COLOR_FIRST" if ssl.COLOR_FIRST else "PATCH_GRID"
        problems.append(
            f"INPUT.SSL.COLOR_ON_DEVICE is True; {key} needs the changed colours in the worker: set one of them off"
        )
    if ssl.PATCH_GRID and ssl.PATCH_GRID * ssl.PATCH_SIZE > ssl.VIEW_SIZE:
        problems.append(
            f"INPUT.SSL.PATCH_SIZE is {ssl.PATCH_SIZE}; {ssl.PATCH_GRID} patches side by side do not fit into "
            f"VIEW_SIZE {ssl.VIEW_SIZE}"
        )
    if not cfg.MODEL.SSL.NORM:
        problems.append("MODEL.SSL.NORM is ''; the heads need a norm, such as 'SyncBN'")
    if cfg.TEST.PRECISE_BN.ENABLED:
        problems.append("TEST.PRECISE_BN.ENABLED is True; pretraining keeps its own batch statistics: set False")
    return problems + META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).problems(cfg)


def _test(cfg: CfgNode) -> list[str]:
    problems, test, name = [], cfg.TEST, cfg.MODEL.META_ARCHITECTURE
    if model_output(cfg) == "features" and cfg.DATASETS.TEST:
        problems.append(
            f"DATASETS.TEST is {cfg.DATASETS.TEST}; {name} predicts nothing to score: set it to "
            "(), and score the backbone by tools.probe or TEST.PROBE"
        )
    if test.SEM_SEG_MATCHING_FIT and test.SEM_SEG_MATCHING == "none":
        problems.append("TEST.SEM_SEG_MATCHING_FIT names a data set, but TEST.SEM_SEG_MATCHING is 'none': set it too")
    if test.MONITOR.DATASET and model_output(cfg) != "semantic":
        problems.append(f"TEST.MONITOR.DATASET is {test.MONITOR.DATASET!r}; {name} predicts no label maps")
    if bool(test.PROBE.TRAIN) != bool(test.PROBE.TEST):
        problems.append(f"TEST.PROBE.TRAIN is {test.PROBE.TRAIN!r} and TEST {test.PROBE.TEST!r}; set both, or neither")
    if test.PROBE.TRAIN and not trains_on_views(cfg):
        problems.append(
            f"TEST.PROBE.TRAIN is {test.PROBE.TRAIN!r}, but {name} trains with labels; the probe is for pretraining"
        )
    if test.BEST_METRIC.startswith(("probe/", "-probe/")) and not test.PROBE.TRAIN:
        problems.append(f"TEST.BEST_METRIC is {test.BEST_METRIC!r}; set TEST.PROBE.TRAIN and TEST.PROBE.TEST, too")
    if test.BEST_METRIC.startswith(("monitor/", "-monitor/")) and not test.MONITOR.DATASET:
        problems.append(f"TEST.BEST_METRIC is {test.BEST_METRIC!r}; set TEST.MONITOR.DATASET, too")
    problems += _misspelt_score(test.BEST_METRIC) or _unknown_score(cfg)
    if test.PATIENCE and not test.BEST_METRIC:
        problems.append(f"TEST.PATIENCE is {test.PATIENCE}; name the value to wait for by TEST.BEST_METRIC")
    if test.SLIDE_WINDOW > 0 and not builds(cfg, SlidingSemanticSegmentor):
        problems.append(f"TEST.SLIDE_WINDOW is {test.SLIDE_WINDOW}; only SlidingSemanticSegmentor reads it: set 0")
    if test.SLIDE_WINDOW and not 0 < test.SLIDE_STRIDE <= test.SLIDE_WINDOW:
        problems.append(f"TEST.SLIDE_STRIDE is {test.SLIDE_STRIDE}; it must be 1 to SLIDE_WINDOW, {test.SLIDE_WINDOW}")
    return problems


def _solver(cfg: CfgNode) -> list[str]:
    problems, solver = [], cfg.SOLVER
    fractions = [step for step in solver.STEPS if _holds(lambda v: 0 < v < 1, step)]
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.EPOCHS > 0 and len(fractions) < len(solver.STEPS):
        problems.append(f"SOLVER.STEPS is {solver.STEPS}; with SOLVER.EPOCHS they are shares of training in (0, 1)")
    if solver.EPOCHS == 0 and fractions:
        problems.append(f"SOLVER.STEPS is {solver.STEPS}; shares of training need SOLVER.EPOCHS")
    if 0 < solver.EPOCHS < solver.WARMUP_EPOCHS:
        problems.append(f"SOLVER.WARMUP_EPOCHS is {solver.WARMUP_EPOCHS}, above EPOCHS {solver.EPOCHS}")
    if solver.NESTEROV and solver.OPTIMIZER != "SGD":
        problems.append(f"SOLVER.NESTEROV is True; {solver.OPTIMIZER} has no such momentum")
    if solver.NESTEROV and not solver.MOMENTUM:
        problems.append("SOLVER.NESTEROV is True; it needs SOLVER.MOMENTUM above 0")
    if solver.BASE_LR_END > solver.BASE_LR:
        problems.append(f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, above BASE_LR {solver.BASE_LR}")
    return problems


def _training(cfg: CfgNode, world_size: int) -> list[str]:
    problems = []
    batch, world = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if batch % world:
        below, above = batch // world * world, (batch // world + 1) * world
        nearest = f"{below} or {above}" if below else f"{above}"
        problems.append(f"SOLVER.IMS_PER_BATCH is {batch}; {world} processes need a multiple, such as {nearest}")
    parts, name = cfg.SOLVER.ACCUMULATE, cfg.MODEL.META_ARCHITECTURE
    if parts > 1 and batch % world == 0 and batch // world % parts:
        problems.append(
            f"SOLVER.ACCUMULATE is {parts}; the {batch // world} images of each process (SOLVER.IMS_PER_BATCH {batch}) "
            "cannot be split into as many equal parts: set a divisor of them"
        )
    if parts > 1 and trains_on_views(cfg) and not META_ARCH_REGISTRY.get(name).accumulates:
        problems.append(
            f"SOLVER.ACCUMULATE is {parts}; {name} compares the images of a batch with each other, so the batch "
            "cannot be split: set 1"
        )
    epochs = [key for key in ("EPOCHS", "WARMUP_EPOCHS") if cfg.SOLVER[key] > 0]
    if epochs and not trains_on_views(cfg) and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        problems.append(
            f"SOLVER.{epochs[0]} is {cfg.SOLVER[epochs[0]]}; it needs DATALOADER.SAMPLER_TRAIN TrainingSampler, not "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}: set it to 0, and SOLVER.MAX_ITER or WARMUP_ITERS instead"
        )
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.PRECISION != "bf16":
        problems.append("SOLVER.AMP.PRECISION is 'fp16'; the CPU has only 'bf16'")
    kinds = ("naive", "SyncBN") if cfg.MODEL.DEVICE == "cpu" else ("naive",)  # what "SyncBN" becomes on the CPU
    naive = [key for key in all_keys(cfg) if key.endswith("NORM") and str(attrgetter(key)(cfg)).startswith(kinds)]
    unread = without_effect(cfg, naive)
    naive = [key for key in naive if key not in unread]
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "bf16" and world_size > 1 and naive:
        problems.append(
            f"SOLVER.AMP.PRECISION is 'bf16'; {naive[0]} is then inaccurate over several processes: on "
            "GPUs set SyncBN, on CPUs SOLVER.AMP.ENABLED False"
        )
    if not cfg.DATASETS.TRAIN:
        kind = {
            "instances": "coco:/data/train.json,images=/data/train",
            "semantic": "masks:/data/images,labels=/data/labels",
        }
        example = "folder:/data/mine" if trains_on_views(cfg) else kind.get(model_output(cfg), "coco_2017_train")
        problems.append(f"DATASETS.TRAIN is empty; name a data set, such as \"('{example}',)\"")
    return problems
