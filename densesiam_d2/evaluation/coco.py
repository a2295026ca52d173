"""AP of instances by the official COCO code, against the annotations that training reads as well."""

import contextlib
import io
import logging
from collections import Counter

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO

from densesiam_d2.evaluation.names import model_order, warn_of_absent
from densesiam_d2.labels.coco_json import read_coco

__all__ = ["RepairedCOCOEvaluator"]

logger = logging.getLogger(__name__)

COCO_LIMIT = 100  # detections of an image that the official scores count


class RepairedCOCOEvaluator(COCOEvaluator):
    """A ``COCOEvaluator`` whose ground truth is what ``read_coco`` makes of the file: ids from 1, areas, no nonsense.

    More than 100 detections of an image count where TEST.DETECTIONS_PER_IMAGE allows them or an image has more
    instances; classes of another order than the model's are matched by name.

    Attributes:
        absent_classes: names of the classes without an instance in the ground truth.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: str | None = None):
        """Read the ground truth.

        Args:
            cfg: MODEL.MASK_ON, MODEL.CLASS_NAMES, DATASETS.TRAIN and TEST.DETECTIONS_PER_IMAGE are read.
            dataset_name: a registered dataset; without "json_file" in its metadata detectron2 converts its records.
            output_dir: where predictions are written; None writes none.

        Raises:
            LabelsError: the annotations cannot be used.
        """
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self._cfg = cfg
        self.absent_classes = []
        if self._do_evaluation:  # sets without annotations only get their predictions written
            subset = MetadataCatalog.get(dataset_name).get("subset")
            content, findings = read_coco(self._metadata.json_file, masks=cfg.MODEL.MASK_ON, subset=subset)
            findings.accept(cfg.DATASETS.ACCEPT).raise_errors()
            self._coco_api = _index(content)
            present = Counter(a["category_id"] for a in content["annotations"] if not a["iscrowd"])
            self.absent_classes = [c["name"] for c in content["categories"] if not present[c["id"]]]
            warn_of_absent(dataset_name, self.absent_classes, "instance")
            self._set_limit(cfg.TEST.DETECTIONS_PER_IMAGE, Counter(a["image_id"] for a in content["annotations"]))

    def _set_limit(self, detections: int, instances: Counter) -> None:
        most = max(instances.values(), default=0)
        if most > detections:
            crowded = sum(count > detections for count in instances.values())
            logger.warning(
                "%s: %d images have more instances (up to %d) than TEST.DETECTIONS_PER_IMAGE %d allows to find: set %d",
                *(self._metadata.name, crowded, most, detections, most),
            )
        limit = max(COCO_LIMIT, detections, most)
        if limit > COCO_LIMIT:
            logger.info("%s: up to %d detections of an image are scored (COCO: 100)", self._metadata.name, limit)
        self._max_dets_per_image = [1, 10, limit]

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        order = model_order(self._cfg, self._metadata.name, "thing_classes")
        if order is not None:
            for prediction in predictions:
                for instance in prediction["instances"]:
                    instance["category_id"] = order[instance["category_id"]]
        super()._eval_predictions(predictions, img_ids)


def _index(content: dict) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = content
        api.createIndex()
    return api
