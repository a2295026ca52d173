"""Check the labels of a run and set its number of classes: one process reads them and tells the others the result."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.data.datasets import scored_sets
from densesiam_d2.data.label_checks import LabelledSet, adopt, look_at
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.labels.classes import class_order
from densesiam_d2.labels.findings import Findings, LabelsError
from densesiam_d2.modeling import model_output, trains_on_views
from densesiam_d2.text_lines import listed

__all__ = ["settle_labels"]

logger = logging.getLogger(__name__)

# Kinds of findings that stop the run only if a training set has them, and only if a test set has them. COCO's test-dev
# has no annotations; its predictions are written to files without scores.
_FOR_TRAINING = ("no-annotations", "one-class")
_FOR_SCORES = ("all-difficult",)

# Tensors with one row per class -> number of further rows (1 for background).
_CLASSIFIERS = {
    "roi_heads.box_predictor.cls_score.weight": 1,
    "sem_seg_head.main.predictor.weight": 0,
    "sem_seg_head.predictor.weight": 0,
}

_NO_NAMES = (
    "nothing says what its classes are: write classes.txt, one name a line from pixel value 0 on, into the folder of "
    "the label maps, or name a file by ,classes=FILE"
)


@dataclass
class _Verdict:
    """The result of the label check, sent to all processes: the error that ends the run, or config values to set."""

    error: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[int, str]] = field(default_factory=list)  # level and text, for the log


def settle_labels(
    cfg: CfgNode, *, fixed: Sequence[str] = (), eval_only: bool = False, weights: str | Path = ""
) -> None:
    """Check all labels of a run once, and set the number of classes from them.

    Call it in all processes before the model is built: the main process checks and sends the result to the others.

    Args:
        cfg: the config, not frozen; MODEL.CLASS_NAMES and the number of classes of supervised heads are set. The
            number of clusters of unsupervised segmentation is not touched.
        fixed: keys that the user has set for this run; if the number of classes is one of them, it must be that of the
            data.
        eval_only: do not check DATASETS.TRAIN.
        weights: with ``eval_only``, the checkpoint that gives the classes.

    Raises:
        LabelsError: labels cannot be used, or contradict each other or the config; one message lists all problems.
        WeightsError: the weights cannot be read.
    """
    names = [*([] if eval_only else cfg.DATASETS.TRAIN), *scored_sets(cfg)]
    register_path_datasets(names)
    verdict = None
    if comm.is_main_process():
        try:
            verdict = _look(cfg, fixed, eval_only, weights)
        except Exception as error:  # the others wait for a result, so send them the error
            verdict = error
    verdict = comm.all_gather(verdict)[0]
    if isinstance(verdict, Exception):
        raise verdict
    for level, line in verdict.lines:
        logger.log(level, line)
    if verdict.error:
        raise LabelsError(verdict.error)
    cfg.merge_from_list([word for pair in verdict.values.items() for word in pair])
    for name in names:
        adopt(name, (*cfg.DATASETS.ACCEPT, *_FOR_TRAINING))  # already checked above
        metadata = MetadataCatalog.get(name)
        if metadata.get("sem_seg_root") and metadata.get("stuff_classes") is None:
            metadata.stuff_classes = verdict.values.get("MODEL.CLASS_NAMES") or _numbers(cfg)


def _numbers(cfg: CfgNode) -> list[str]:
    return [str(i) for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]


def _look(cfg: CfgNode, fixed: Sequence[str], eval_only: bool, weights: str | Path) -> _Verdict:
    """Check the labels of all sets that need them, and compare their classes."""
    semantic, key = _kind(cfg)
    if semantic is None:
        return _Verdict()
    train_names = cfg.DATASETS.TRAIN if key and not eval_only else ()
    numbers = _numbers(cfg) if semantic and key and key in fixed else None  # without a key it counts clusters
    looked = {
        name: look_at(name, semantic=semantic, masks=cfg.MODEL.MASK_ON, classes=numbers)
        for name in dict.fromkeys([*train_names, *scored_sets(cfg)])
    }
    for name, labelled in looked.items():
        matters_not = [] if name in scored_sets(cfg) else _FOR_SCORES
        labelled.findings = labelled.findings.accept(matters_not if name in train_names else _FOR_TRAINING)
    train, test = ([looked[name] for name in names] for names in (train_names, scored_sets(cfg)))
    findings = Findings(finding for labelled in looked.values() for finding in labelled.findings)
    findings = findings.accept(cfg.DATASETS.ACCEPT)
    verdict = _Verdict(lines=[(logging.INFO if f.level == "repaired" else logging.WARNING, str(f)) for f in findings])
    for labelled in looked.values():
        if labelled.classes is None and not findings.of("error"):
            or_number = f", or set {key} N" if key else ""
            findings.add("error", "class-names", labelled.name, _NO_NAMES + or_number)
    if cfg.TEST.SEM_SEG_MATCHING_FIT and not findings.of("error"):
        _compare_with_fit(looked[cfg.TEST.SEM_SEG_MATCHING_FIT], [looked[n] for n in cfg.DATASETS.TEST], findings)
    if key and not findings.of("error"):
        known = _classes_of(weights) if eval_only else (None, None)
        _settle_classes(cfg, key, train, test, fixed, known, findings, verdict)
    try:
        findings.raise_errors()
    except LabelsError as error:
        return _Verdict(error=str(error))
    return verdict


def _kind(cfg: CfgNode) -> tuple[bool | None, str]:
    """Return whether the run needs label maps (True), instances (False) or neither (None), and the NUM_CLASSES key."""
    if trains_on_views(cfg):
        return (True if scored_sets(cfg) else None), ""
    kinds = {"semantic": (True, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"), "instances": (False, "MODEL.ROI_HEADS.NUM_CLASSES")}
    return kinds.get(model_output(cfg), (None, ""))


def _compare_with_fit(fit: LabelledSet, test: Sequence[LabelledSet], findings: Findings) -> None:
    """Check that clusters can be matched on one set for the scores of others: their classes must be equal."""
    for other in test:
        if list(other.classes) != list(fit.classes):
            text = f"its classes ({listed(fit.classes)}) are not those of {other.name!r}: {listed(other.classes)}"
            findings.add("error", "classes-differ", f"TEST.SEM_SEG_MATCHING_FIT {fit.name!r}", text)


def _classes_of(weights: str | Path) -> tuple[list[str] | None, int | None]:
    """Return the class names in our own checkpoint, and the number of classes of its tensors; None if unknown."""
    if not weights or "://" in str(weights) or not Path(weights).is_file():
        return None, None
    try:
        checkpoint = read_checkpoint(weights, foreign=True)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    trainer, state = checkpoint.get("trainer"), checkpoint.get("model", checkpoint)
    names = trainer.get("classes") if isinstance(trainer, dict) else None
    state = state if isinstance(state, dict) else {}
    rows = next((len(state[name]) - extra for name, extra in _CLASSIFIERS.items() if name in state), None)
    return names or None, rows


def _settle_classes(
    cfg: CfgNode,
    key: str,
    train: list[LabelledSet],
    test: list[LabelledSet],
    fixed: Sequence[str],
    known: tuple[list[str] | None, int | None],
    findings: Findings,
    verdict: _Verdict,
) -> None:
    """Find the names of the model's classes, and compare all data sets and the config with them.

    Args:
        known: names and number of classes of the weights to evaluate; None for those that come from the data.
    """
    first = (train or test)[0]
    names, source = (known[0], "MODEL.WEIGHTS") if known[0] else (list(first.classes), f"{first.name!r}")
    if known[1] not in (None, len(names)):
        text = f"it has {known[1]} classes, but {source} has {len(names)}: {listed(names)}"
        findings.add("error", "num-classes", "MODEL.WEIGHTS", text)
    for other in train[1:]:
        if list(other.classes) != names:
            text = f"its classes ({listed(other.classes)}) are not those of {first.name!r}, in order: {listed(names)}"
            findings.add("error", "classes-differ", other.name, text)
    for other in test:
        try:
            if class_order(names, other.classes) is not None:
                verdict.lines.append((logging.INFO, f"{other.name}: its classes have another order; scored by name"))
        except ValueError as error:
            findings.add("error", "classes-differ", f"{other.name!r} against {source}", str(error))
    number = attrgetter(key)(cfg)
    if key in fixed and number != len(names):
        text = f"{key} is {number}, but {source} has {len(names)} classes ({listed(names)})"
        findings.add("error", "num-classes", "the command line", f"{text}; leave the key out, it follows the data")
    elif number != len(names):
        verdict.lines.append(
            (logging.INFO, f"{key} {number} -> {len(names)}: the classes of {source}, {listed(names)}")
        )
    verdict.values = {key: len(names), "MODEL.CLASS_NAMES": names}
