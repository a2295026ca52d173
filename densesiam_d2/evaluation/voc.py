"""AP of boxes by Pascal VOC's rules, for annotations from any tool."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.utils import comm

from densesiam_d2.evaluation.names import check_predicted_classes, model_order, warn_of_absent
from densesiam_d2.labels.voc import is_outside, read_voc_split, read_voc_xml

__all__ = ["VOCEvaluator"]

_THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # of the IoU


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's evaluator, which also takes XML without ``<difficult>``, ``<truncated>`` and ``<pose>``.

    The mean is over the classes that have objects; VOC's own splits have all 20. Classes are matched by name if their
    order is not the model's. Boxes may have fractions of pixels.

    Attributes:
        absent_classes: names of the classes without an object that counts.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str):
        """Read the annotations.

        Args:
            cfg: MODEL.CLASS_NAMES and DATASETS.TRAIN are read.
            dataset_name: a set registered by ``register_pascal_voc``.

        Raises:
            ValueError: an annotation cannot be read, no object counts, or the classes of model and dataset differ.
        """
        super().__init__(dataset_name)
        self._order = model_order(cfg, dataset_name, "thing_classes")
        classes = MetadataCatalog.get(dataset_name).thing_classes
        self._num_classes = len(classes)
        lines = read_voc_split(self._image_set_path, Path(self._anno_file_template).parent)
        self._objects = {}
        for image_id in (words[0] for words in lines if words):
            content = read_voc_xml(self._anno_file_template.format(image_id))
            size = content["width"], content["height"]
            self._objects[image_id] = [o for o in content["objects"] if not is_outside(o["bbox"], *size)]
        counted = Counter(o["name"] for objects in self._objects.values() for o in objects if not o["difficult"])
        self._counted = [number for number, name in enumerate(classes) if counted[name]]
        if not self._counted:
            raise ValueError(f"{self._image_set_path}: none of its images has an object to score (difficult 0)")
        self.absent_classes = [name for name in classes if not counted[name]]
        warn_of_absent(dataset_name, self.absent_classes, "object")

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the predictions of one batch.

        Raises:
            ValueError: a class is predicted that the dataset does not have.
        """
        for output in outputs:
            check_predicted_classes(self._dataset_name, output["instances"], self._num_classes)
        super().process(inputs, outputs)

    def evaluate(self) -> dict | None:
        """Return {"bbox": {"AP", "AP50", "AP75"}} in percent in the main process, None in the others."""
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        lines = defaultdict(list)
        for predictions in gathered:
            for number, found in predictions.items():
                lines[self._order[number] if self._order else number] += found
        scores = np.array([self._score_class(number, lines[number]) for number in self._counted])
        by_threshold = dict(zip(_THRESHOLDS, 100 * scores.mean(axis=0), strict=True))
        return {"bbox": {"AP": 100 * scores.mean(), "AP50": by_threshold[0.5], "AP75": by_threshold[0.75]}}

    def _score_class(self, number: int, lines: Sequence[str]) -> list[float]:
        """Return the average precision of a class at each threshold.

        Args:
            number: of the class in the dataset.
            lines: "image score xmin ymin xmax ymax" of each prediction of the class.
        """
        name = MetadataCatalog.get(self._dataset_name).thing_classes[number]
        truth = {image: [o for o in objects if o["name"] == name] for image, objects in self._objects.items()}
        boxes = {image: np.array([o["bbox"] for o in objects], float) for image, objects in truth.items()}
        num_objects = sum(not o["difficult"] for objects in truth.values() for o in objects)
        images = [line.rsplit(" ", 5)[0] for line in lines]  # whose names may have spaces
        numbers = np.array([line.rsplit(" ", 5)[1:] for line in lines], float).reshape(-1, 5)
        nearest = []
        for i in np.argsort(-numbers[:, 0]):
            image = images[i]
            if not truth[image]:
                nearest.append((0.0, None, False))
                continue
            ious = _ious(numbers[i, 1:], boxes[image])
            best = int(ious.argmax())
            nearest.append((ious[best], (image, best), bool(truth[image][best]["difficult"])))
        return [_average_precision(nearest, num_objects, threshold, self._is_2007) for threshold in _THRESHOLDS]


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU (N,) of a box (4,) with boxes (N, 4): xmin, ymin, xmax, ymax, the last pixels included."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
    common = sides.clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    return common / ((box[2:] - box[:2] + 1).prod() + areas - common)


def _average_precision(nearest: Sequence[tuple], num_objects: int, threshold: float, is_2007: bool) -> float:
    """Return VOC's average precision.

    Args:
        nearest: for each prediction, by falling score: the IoU with its nearest object, the key of that object, and
            whether it is difficult, so that finding it does not count.
        num_objects: number of objects that are not difficult.
        threshold: a prediction with a larger IoU finds its object; only the first one does.
        is_2007: precision at 11 values of recall, as in 2007, instead of the area.
    """
    right, wrong, found = np.zeros(len(nearest)), np.zeros(len(nearest)), set()
    for i, (iou, key, difficult) in enumerate(nearest):
        if iou <= threshold:
            wrong[i] = 1
        elif not difficult:
            (wrong if key in found else right)[i] = 1
            found.add(key)
    right, wrong = right.cumsum(), wrong.cumsum()
    precision = right / np.maximum(right + wrong, np.finfo(float).eps)
    return voc_ap(right / num_objects, precision, use_07_metric=is_2007)
