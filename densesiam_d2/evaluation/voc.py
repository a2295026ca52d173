"""AP of boxes by Pascal VOC's rules, for annotations that other tools than VOC's wrote."""

import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from unittest import mock

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation

from densesiam_d2.evaluation.names import check_predicted_classes, model_order, warn_of_absent
from densesiam_d2.labels.voc import read_voc_xml

__all__ = ["VOCEvaluator"]


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's evaluator, which also takes XML without ``<difficult>``, ``<truncated>`` and ``<pose>``.

    The mean is over the classes that have objects; VOC's own splits have all 20. Classes of another order than the
    model's are matched by name. Boxes may have fractions of pixels.

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
        # The stock code names files by the classes, so that numbers are safer than names.
        numbers = {name: str(number) for number, name in enumerate(classes)}
        image_ids = Path(self._image_set_path).read_text(encoding="utf-8-sig").split()
        contents = {image_id: read_voc_xml(self._anno_file_template.format(image_id)) for image_id in image_ids}
        self._objects = {
            image_id: [{**o, "name": numbers[o["name"]]} for o in content["objects"] if o["name"] in numbers]
            for image_id, content in contents.items()
        }
        counted = Counter(o["name"] for objects in self._objects.values() for o in objects if not o["difficult"])
        if not counted:
            raise ValueError(f"{self._image_set_path}: none of its images has an object to score (difficult 0)")
        self._class_names = [number for number in numbers.values() if counted[number]]
        self.absent_classes = [name for name, number in numbers.items() if not counted[number]]
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
        lines = defaultdict(list)
        for number, found in self._predictions.items():
            name = str(self._order[number] if self._order else number)
            if name in self._class_names:
                lines[self._class_names.index(name)] = found
        with tempfile.TemporaryDirectory() as folder:
            image_set = Path(folder) / "images.txt"
            image_set.write_text("\n".join(self._objects))
            with (
                mock.patch.object(self, "_predictions", lines),
                mock.patch.object(self, "_image_set_path", str(image_set)),
                # The stock code asks parse_rec(template.format(image)) for the objects; its own needs every tag.
                mock.patch.object(self, "_anno_file_template", "{}"),
                mock.patch.object(pascal_voc_evaluation, "parse_rec", self._objects.__getitem__),
            ):
                return super().evaluate()
