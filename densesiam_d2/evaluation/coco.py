"""AP of instances by the official COCO code, with the same repaired annotations as in training."""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densesiam_d2.evaluation.names import check_predicted_classes, model_order, warn_of_absent
from densesiam_d2.labels.coco_json import read_coco

__all__ = ["RepairedCOCOEvaluator"]

logger = logging.getLogger(__name__)

COCO_LIMIT = 100  # detections per image in the official scores


class RepairedCOCOEvaluator(COCOEvaluator):
    """A ``COCOEvaluator`` whose ground truth is read and repaired by ``read_coco``.

    More than 100 detections of an image are scored if TEST.DETECTIONS_PER_IMAGE allows them or an image has more
    instances. Classes are matched by name if their order is not the model's.

    Attributes:
        absent_classes: names of the classes without an instance in the ground truth.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: str | None = None):
        """Read the ground truth.

        Args:
            cfg: MODEL.MASK_ON, MODEL.CLASS_NAMES, DATASETS.ACCEPT, DATASETS.TRAIN and TEST.DETECTIONS_PER_IMAGE are
                read.
            dataset_name: a registered dataset; without "json_file" in its metadata, its records are converted.
            output_dir: where predictions are written; None writes none.

        Raises:
            LabelsError: the annotations cannot be used.
            ValueError: the classes of model and dataset differ, or records have to be converted without an output_dir.
        """
        # The stock __init__ would read the file without repairs, and fail on some files.
        self._logger, self._cpu_device = logger, torch.device("cpu")
        self._distributed, self._output_dir, self._tasks, self._kpt_oks_sigmas = True, output_dir, None, ()
        wanted = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
        self._tasks_of_nothing = {task for task in wanted if wanted[task]}
        self._use_fast_impl = coco_evaluation.COCOeval_opt is not coco_evaluation.COCOeval  # whether it is built
        self._metadata = metadata = MetadataCatalog.get(dataset_name)
        json_file = PathManager.get_local_path(metadata.get("json_file") or _convert_records(dataset_name, output_dir))
        subset, accept = metadata.get("subset"), cfg.DATASETS.ACCEPT
        self._coco_api = _read_ground_truth(json_file, masks=cfg.MODEL.MASK_ON, subset=subset, accept=accept)
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._max_dets_per_image = [1, 10, COCO_LIMIT]
        content = self._coco_api.dataset
        classes = metadata.get("thing_classes") or [category["name"] for category in content["categories"]]
        self._num_classes = len(classes)
        self._order = model_order(cfg, dataset_name, "thing_classes", classes)
        self.absent_classes = []
        if self._do_evaluation:  # for sets without annotations, predictions are written only
            present = {a["category_id"] for a in content["annotations"] if not a["iscrowd"]}
            self.absent_classes = [c["name"] for c in content["categories"] if c["id"] not in present]
            warn_of_absent(dataset_name, self.absent_classes, "instance")
            self._set_limit(cfg.TEST.DETECTIONS_PER_IMAGE, content["annotations"])

    def _tasks_from_predictions(self, predictions: list[dict]) -> set[str]:
        """Return what to score; a model that finds nothing has the scores of its kind too."""
        return super()._tasks_from_predictions(predictions) if predictions else self._tasks_of_nothing

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names: list[str] | None = None) -> dict:
        """Return the scores by their name; 0 for a model that finds nothing, where detectron2 has NaN."""
        if coco_eval is None:
            coco_eval = _score_nothing(self._coco_api, iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _set_limit(self, detections: int, annotations: list[dict]) -> None:
        """Score as many detections per image as the model may return, or as there are annotations.

        Args:
            detections: maximum that the model returns per image.
            annotations: of all images. Crowds count for the limit, but not for the warning.
        """
        instances = Counter(a["image_id"] for a in annotations if not a["iscrowd"])
        crowded = [count for count in instances.values() if count > detections]
        if crowded:
            logger.warning(
                "%s: %d images have more instances than TEST.DETECTIONS_PER_IMAGE %d; to find them all, set it to %d",
                *(self._metadata.name, len(crowded), detections, max(crowded)),
            )
        most = max(Counter(a["image_id"] for a in annotations).values(), default=0)
        limit = max(COCO_LIMIT, detections, most)
        if limit > COCO_LIMIT:
            logger.info("%s: up to %d detections of an image are scored (COCO: 100)", self._metadata.name, limit)
        self._max_dets_per_image = [1, 10, limit]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the predictions of one batch, with the class numbers of the dataset.

        Raises:
            ValueError: a class is predicted that the dataset does not have.
        """
        for output in outputs:
            if "instances" in output:
                check_predicted_classes(self._metadata.name, output["instances"], self._num_classes)
        earlier = len(self._predictions)
        super().process(inputs, outputs)
        if self._order is not None:
            for prediction in self._predictions[earlier:]:
                for instance in prediction.get("instances", ()):
                    instance["category_id"] = self._order[instance["category_id"]]


def _score_nothing(truth: COCO, iou_type: str) -> COCOeval:
    """Return the official evaluation of no detection; ``loadRes`` does not take an empty list."""
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        nothing.createIndex()
        evaluation = COCOeval(truth, nothing, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _convert_records(dataset_name: str, output_dir: str | None) -> str:
    """Write the records of a dataset as a file in COCO's format; return its name."""
    if output_dir is None:
        raise ValueError(f"{dataset_name} has no json_file in its metadata; an output_dir is needed to write one")
    json_file = Path(output_dir) / f"{dataset_name}_coco_format.json"
    convert_to_coco_json(dataset_name, str(json_file), allow_cached=False)
    return str(json_file)


def _read_ground_truth(
    json_file: str, *, masks: bool, subset: tuple[int, int] | None, accept: Sequence[str] = ()
) -> COCO:
    """Return the repaired annotations as an object of the official code, which prints nothing here.

    Args:
        json_file: in COCO's format.
        masks: whether annotations need a usable mask.
        subset: number of images to draw, and the seed.
        accept: kinds of findings that do not stop.

    Raises:
        LabelsError: the annotations cannot be used.
    """
    api = COCO()
    api.dataset, findings = read_coco(json_file, masks=masks, subset=subset)
    if any(finding.kind == "no-annotations" for finding in findings):
        del api.dataset["annotations"]  # detectron2 then writes predictions without scoring them
    else:
        findings.accept(accept).raise_errors()
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api
