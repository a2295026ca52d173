"""AP of boxes by Pascal VOC's rules, for annotations that other tools than VOC's wrote."""

import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm

from densesiam_d2.evaluation.names import model_order, warn_of_absent
from densesiam_d2.labels.voc import read_voc_xml

__all__ = ["VOCEvaluator"]


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's evaluator, which also takes XML without ``<difficult>``, ``<truncated>`` and ``<pose>``.

    The mean is over the classes that have objects; VOC's own splits have all 20. Classes of another order than the
    model's are matched by name.

    Attributes:
        absent_classes: names of the classes without an object that counts.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str):
        """Read the annotations.

        Args:
            cfg: MODEL.CLASS_NAMES and DATASETS.TRAIN are read.
            dataset_name: a set registered by ``register_pascal_voc``.

        Raises:
            ValueError: an annotation cannot be read, or the classes of model and dataset differ.
        """
        super().__init__(dataset_name)
        self._order = model_order(cfg, dataset_name, "thing_classes")
        image_ids = Path(self._image_set_path).read_text().split()
        self._objects = {i: read_voc_xml(self._anno_file_template.format(i))["objects"] for i in image_ids}
        counted = Counter(o["name"] for objects in self._objects.values() for o in objects if not o["difficult"])
        self._names = list(MetadataCatalog.get(dataset_name).thing_classes)
        self._present = [number for number, name in enumerate(self._names) if counted[name]]
        self.absent_classes = [name for name in self._names if not counted[name]]
        warn_of_absent(dataset_name, self.absent_classes, "object")

    def evaluate(self) -> dict | None:
        """Return {"bbox": {"AP", "AP50", "AP75"}} in percent in the main process, None in the others."""
        found = defaultdict(list)
        for number, lines in self._predictions.items():
            found[self._order[number] if self._order else number] = lines
        self._predictions = defaultdict(list, {i: found[n] for i, n in enumerate(self._present) if n in found})
        # The scripts read files, named by the class, of which they want every tag.
        with tempfile.TemporaryDirectory() as folder:
            self._class_names = [f"class_{number}" for number in self._present]
            self._anno_file_template = f"{folder}/{{}}.xml"
            self._image_set_path = f"{folder}/images.txt"
            if comm.is_main_process():
                Path(self._image_set_path).write_text("\n".join(self._objects) + "\n")
                for image_id, objects in self._objects.items():
                    self._write(Path(self._anno_file_template.format(image_id)), objects)
            return super().evaluate()

    def _write(self, path: Path, objects: list[dict]) -> None:
        root = ET.Element("annotation")
        for entry in objects:
            element = ET.SubElement(root, "object")
            facts = {"name": f"class_{self._names.index(entry['name'])}", "pose": "", "truncated": 0}
            for tag, value in {**facts, "difficult": entry["difficult"]}.items():
                ET.SubElement(element, tag).text = str(value)
            box = ET.SubElement(element, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), entry["bbox"], strict=True):
                ET.SubElement(box, tag).text = str(int(value))
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(root).write(path)
