"""Semantic segmentation by one confusion matrix over the whole dataset.

Shape shorthand: K classes, P channels of the prediction, H,W pixels.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from densesiam_d2.evaluation.confusion import confusion_matrix, scores
from densesiam_d2.evaluation.examples import Example
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.evaluation.names import warn_of_absent
from densesiam_d2.image_io import label_table, read_label
from densesiam_d2.labels.foreground import foreground_of
from densesiam_d2.labels.subset import evenly_spaced

__all__ = ["SemSegConfusionEvaluator", "predicted_labels", "read_labels"]

logger = logging.getLogger(__name__)


def read_labels(path: str | Path, label_map: np.ndarray | None = None) -> np.ndarray:
    """Read a label image.

    Args:
        path: an image whose pixels are ids, see :func:`densesiam_d2.image_io.read_label`.
        label_map: (256,) uint8, the new id of each raw id; None keeps the raw ids.

    Returns:
        (H, W) ids, uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the image is damaged or not a label map.
    """
    labels = read_label(path)
    return labels if label_map is None else cv2.LUT(labels, label_map)


def predicted_labels(logits: torch.Tensor) -> np.ndarray:
    """Return the argmax over channels.

    Args:
        logits: (P, H, W), fastest if stored channels last.

    Returns:
        (H, W) ids, uint8 if P <= 256.
    """
    labels = logits.permute(1, 2, 0).max(dim=-1).indices if logits.stride(0) == 1 else logits.max(dim=0).indices
    return labels.to(torch.uint8 if len(logits) <= 256 else torch.int64).cpu().numpy()


class SemSegConfusionEvaluator(DatasetEvaluator):
    """Scores of a semantic segmentation: mIoU, mIoU_present, pACC, mACC and the IoU of each class.

    Each process counts its own images; :meth:`evaluate` adds the matrices of all processes. The labels of an image are
    the input's "sem_seg_target" if the mapper provides it (labels of a crop), otherwise the dataset's
    "sem_seg_file_name", mapped by the metadata's ``label_map`` if there is one, or :func:`foreground_of` of its
    "annotations".

    Attributes, which :meth:`evaluate` sets in the main process:
        absent_classes: names of the classes without a labelled pixel.
        protocol: what was done: "matching", "num_classes", "resolution", "num_images", "num_pixels" and
            "num_pixels_ignored" (of these).
        confusion: the counts of all images, (K, P) int64, rows are targets.
        cluster_classes: the class id of each cluster, None for clusters without a class; None itself without matching.
        examples: some images with labels and predictions, at most ``num_examples``, in the dataset's order.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | None = None,
        order: Sequence[int] | None = None,
        resolution: str = "original",
        num_examples: int = 0,
        image_format: str = "RGB",
    ):
        """Read the metadata.

        Args:
            dataset_name: a registered dataset with ``stuff_classes`` and ``ignore_label`` in its metadata.
            output_dir: folder for ``sem_seg_evaluation.json`` (scores and matrix), if any.
            order: the dataset's number of each class of the model; None if both have the same order.
            resolution: at what resolution images are scored, in words; it is only reported.
            num_examples: how many images to keep as small pictures, chosen evenly from the dataset.
            image_format: "RGB" or "BGR", of the inputs' "image".

        Raises:
            ValueError: the metadata lacks one of the two, or two classes share a name.
        """
        metadata = MetadataCatalog.get(dataset_name)
        for key in ("stuff_classes", "ignore_label"):
            if not hasattr(metadata, key):
                raise ValueError(
                    f"dataset '{dataset_name}': its metadata has no '{key}', needed to score segmentations"
                )
        self._class_names = list(metadata.stuff_classes)
        twins = sorted({name for name in self._class_names if self._class_names.count(name) > 1})
        if twins:
            raise ValueError(f"dataset '{dataset_name}': several classes are called {twins}, but scores go by name")
        self._dataset_name = dataset_name
        self._metadata = metadata
        self._num_classes = len(self._class_names)
        self._ignore_label = metadata.ignore_label
        self._label_map = label_table(metadata.get("label_map"))
        self._output_dir = Path(output_dir) if output_dir else None
        self._records = None
        self._order = order
        self._resolution = resolution
        self._image_format = image_format
        self._example_names = None if num_examples else []
        self._num_examples = num_examples
        self.absent_classes, self.protocol, self.confusion, self.cluster_classes, self.examples = [], {}, None, None, []
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self._matrix = np.zeros((self._num_classes, self._num_classes), np.int64)
        self._num_images = self._num_pixels = 0
        self._kept: list[Example] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count one batch.

        Args:
            inputs: the model's inputs, with "file_name", the record's "image_id" if it has one, and perhaps
                "sem_seg_target" (H, W).
            outputs: the model's outputs, with "sem_seg" (P, H, W), or "sem_seg_labels" (H, W) and "num_classes".

        Raises:
            ValueError: labels and prediction do not fit each other or the metadata; the message names the file.
        """
        for x, output in zip(inputs, outputs, strict=True):
            if "sem_seg_labels" in output:
                labels, num_predicted = output["sem_seg_labels"].cpu().numpy(), output["num_classes"]
            else:
                labels, num_predicted = predicted_labels(output["sem_seg"]), len(output["sem_seg"])
            self._make_room(num_predicted)
            target, name = self._target(x), x.get("file_name", "image without file_name")
            self._matrix[:, :num_predicted] += confusion_matrix(
                target, labels, self._num_classes, num_predicted, self._ignore_label, name=name
            )
            self._num_images += 1
            self._num_pixels += target.size
            if self._is_example(name):
                image = x["image"].cpu().numpy().transpose(1, 2, 0)
                image = image if self._image_format == "RGB" else image[..., ::-1]
                labels = labels if self._order is None else np.asarray(self._order)[labels]
                self._kept.append(Example.of(name, image, target, labels))

    def _is_example(self, file_name: str) -> bool:
        if self._example_names is None:
            names = [record["file_name"] for record in DatasetCatalog.get(self._dataset_name)]
            self._example_names = evenly_spaced(names, self._num_examples)
        return file_name in self._example_names

    def evaluate(self) -> OrderedDict:
        """Return {"sem_seg": scores in percent} in the main process, {} in the others.

        Raises:
            ValueError: no image was processed.
        """
        comm.synchronize()
        parts = comm.gather((self._matrix, self._num_images, self._num_pixels, self._kept))
        if not comm.is_main_process():
            return OrderedDict()
        matrices, images, pixels, examples = zip(*parts, strict=True)
        if not sum(images):
            raise ValueError(f"dataset '{self._dataset_name}': no image was evaluated")
        width = max(matrix.shape[1] for matrix in matrices)  # a process without images has no columns for clusters
        matrix = sum(np.pad(m, ((0, 0), (0, width - m.shape[1]))) for m in matrices)
        if self._order is not None:
            matrix = matrix[:, np.argsort(self._order)]  # columns in the dataset's order, like the rows
        self.confusion = matrix
        kept = {example.file_name: example for example in chain.from_iterable(examples)}
        self.examples = [kept[name] for name in self._example_names or () if name in kept]
        self.absent_classes = [self._class_names[i] for i in np.flatnonzero(matrix.sum(axis=1) == 0)]
        warn_of_absent(self._dataset_name, self.absent_classes, "pixel")
        self.protocol = {
            "matching": "none",
            "num_classes": self._num_classes,
            "resolution": self._resolution,
            "num_images": sum(images),
            "num_pixels": sum(pixels),
            "num_pixels_ignored": int(sum(pixels) - matrix.sum()),
        }
        results, details = self._score(matrix)
        if self._output_dir:
            details |= {"absent_classes": self.absent_classes, "confusion": matrix.tolist()}
            record = {"sem_seg": results, **self.protocol, "classes": self._class_names, **details}
            write_json(self._output_dir / "sem_seg_evaluation.json", record)
        logger.info("%s was scored so: %s", self._dataset_name, _in_words(self.protocol))
        headline = {name: value for name, value in results.items() if not name.startswith("IoU-")}
        logger.info("%s, %d images: %s", self._dataset_name, sum(images), json.dumps(_rounded(headline)))
        return OrderedDict({"sem_seg": results})

    def _score(self, matrix: np.ndarray) -> tuple[dict[str, float], dict]:
        """Return the scores of the summed matrix (K, P), and further entries for the file; may extend ``protocol``."""
        return self._named(scores(matrix)), {}

    def _named(self, result: dict) -> dict[str, float]:
        """Return scores with one entry per class instead of the array "IoU"."""
        named = {name: value for name, value in result.items() if name != "IoU"}
        return named | {f"IoU-{k}": float(v) for k, v in zip(self._class_names, result["IoU"], strict=True)}

    def _make_room(self, num_predicted: int) -> None:
        """Check the prediction's number of channels."""
        if num_predicted != self._num_classes:
            raise ValueError(
                f"the model predicts {num_predicted} classes (MODEL.SEM_SEG_HEAD.NUM_CLASSES), dataset "
                f"'{self._dataset_name}' has {self._num_classes}; "
                "clusters need TEST.SEM_SEG_MATCHING, such as 'hungarian'"
            )

    def _target(self, x: dict) -> np.ndarray:
        """Return the labels (H, W) of one input."""
        if "sem_seg_target" in x:
            target = x["sem_seg_target"].cpu().numpy()
            small = not target.size or 0 <= target.min() <= target.max() <= 255
            return target.astype(np.uint8) if small else target
        if self._records is None:
            self._records = {_key(record): record for record in DatasetCatalog.get(self._dataset_name)}
        record = self._records.get(_key(x), {})
        if "sem_seg_file_name" in record:
            return read_labels(record["sem_seg_file_name"], self._label_map)
        if "annotations" in record:
            return foreground_of(record["annotations"], x["height"], x["width"])
        raise ValueError(
            f"{x['file_name']}: dataset '{self._dataset_name}' has neither 'sem_seg_file_name' nor 'annotations' for it"
        )


def _key(record: dict) -> tuple:
    """Return what tells records apart: a COCO file may have two entries, with an id each, for one image file."""
    return record["file_name"], record.get("image_id")


def _in_words(protocol: dict) -> str:
    """Return the entries of a protocol as one line."""
    return ", ".join(f"{name.removeprefix('num_').replace('_', ' ')} {value}" for name, value in protocol.items())


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
