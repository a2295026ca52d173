"""Choose the evaluator of a dataset by its metadata."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from densesiam_d2.evaluation.cityscapes import CityscapesInstanceEvaluator
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.coco import RepairedCOCOEvaluator
from densesiam_d2.evaluation.names import model_order
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator
from densesiam_d2.evaluation.voc import VOCEvaluator

__all__ = ["build_evaluator", "require_evaluator"]

_NUM_EXAMPLES = 12  # images of a label-map set that are kept as small pictures


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None, *, semantic: bool = False
) -> DatasetEvaluator:
    """Return the evaluator for a dataset, chosen by its metadata ``evaluator_type``.

    Args:
        cfg: the run's config; TEST, DATASETS, MODEL.MASK_ON and CLASS_NAMES are read.
        dataset_name: a registered dataset.
        output_dir: where the evaluator may write its predictions; None writes none.
        semantic: whether the model predicts label maps; it decides for datasets with both kinds of labels, and for
            those in COCO's format, whose instances are then two classes, background and foreground.

    Raises:
        ValueError: the dataset has no evaluator, or its labels or classes cannot be used.
    """
    evaluator_type = require_evaluator(dataset_name)
    if evaluator_type in ("scenes", "coco"):
        evaluator_type = "sem_seg" if semantic else "coco"
    return _BUILDERS[evaluator_type](cfg, dataset_name, output_dir)


def require_evaluator(dataset_name: str) -> str:
    """Return the metadata ``evaluator_type`` of a registered dataset.

    Raises:
        ValueError: there is no evaluator of this type.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in (*_BUILDERS, "scenes"):
        raise ValueError(
            f"dataset {dataset_name}: evaluator_type {evaluator_type} is unknown; known are {', '.join(_BUILDERS)}. "
            "Set it by MetadataCatalog.get(name).evaluator_type, or leave the dataset out of DATASETS.TEST"
        )
    return evaluator_type


def _build_sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> DatasetEvaluator:
    side = cfg.TEST.CENTER_CROP_SIZE
    common = {
        "output_dir": output_dir,
        "resolution": f"centre crop of {side} x {side} after resizing the short side to {side}" if side else "original",
        "num_examples": _NUM_EXAMPLES if output_dir else 0,
        "image_format": cfg.INPUT.FORMAT,
    }
    if cfg.TEST.SEM_SEG_MATCHING != "none":
        return ClusterSemSegEvaluator(dataset_name, matching=cfg.TEST.SEM_SEG_MATCHING, **common)
    return SemSegConfusionEvaluator(dataset_name, order=model_order(cfg, dataset_name, "stuff_classes"), **common)


_BUILDERS: dict[str, Callable[[CfgNode, str, str | None], DatasetEvaluator]] = {
    "coco": RepairedCOCOEvaluator,
    "pascal_voc": lambda cfg, name, _: VOCEvaluator(cfg, name),
    "cityscapes_instance": lambda cfg, name, _: CityscapesInstanceEvaluator(
        name, order=model_order(cfg, name, "thing_classes")
    ),
    "cityscapes_sem_seg": _build_sem_seg,
    "sem_seg": _build_sem_seg,
}
