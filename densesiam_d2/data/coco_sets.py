"""Labelled sets in COCO's JSON: records for training and testing, after the repairs of ``labels/coco_json.py``."""

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from densesiam_d2.labels.coco_json import read_coco
from densesiam_d2.labels.findings import LabelsError

__all__ = ["adopt_coco", "coco_records", "load_coco", "register_coco"]

# Where ``register_coco_instances`` and detectron2's built-in sets come from.
_DETECTRON2_COCO = "detectron2.data.datasets.coco"


def register_coco(name: str, json_file: Path, image_root: Path, subset: tuple[int, int] | None = None) -> None:
    """Register annotations in COCO's format under a name.

    Args:
        name: of the dataset.
        json_file: annotations; read when the dataset is asked for.
        image_root: folder that the file names in it are relative to.
        subset: number of annotated images to draw, and the seed; None takes all.
    """
    DatasetCatalog.register(name, functools.partial(load_coco, name))
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), evaluator_type="coco")
    if subset:
        MetadataCatalog.get(name).subset = subset


def adopt_coco(name: str, accept: Sequence[str] = ()) -> None:
    """Let a set that ``register_coco_instances`` of detectron2 or we registered be read by :func:`load_coco`.

    detectron2's own reader dies of annotations that have a plain meaning, and keeps others that have none.
    """
    loader = DatasetCatalog[name]
    if getattr(loader, "__module__", None) == _DETECTRON2_COCO or getattr(loader, "func", None) is load_coco:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(load_coco, name, accept))


def load_coco(name: str, accept: Sequence[str] = ()) -> list[dict]:
    """Load a registered set in COCO's format.

    Args:
        name: of the dataset; its metadata has "json_file" and "image_root", and perhaps "subset".
        accept: kinds of findings that do not stop.

    Returns:
        detectron2's records. Annotations without a usable mask keep their box.

    Raises:
        FileNotFoundError: the file does not exist.
        LabelsError: the annotations cannot be used.
    """
    metadata = MetadataCatalog.get(name)
    content, findings = read_coco(metadata.json_file, masks=None, subset=metadata.get("subset"))
    findings.accept(accept).raise_errors()
    records = coco_records(name, content)
    logging.getLogger(__name__).info("%d images, %d annotations in %s", len(records), _count(records), name)
    return records


def coco_records(name: str, content: dict) -> list[dict]:
    """Turn what ``read_coco`` returns into detectron2's records, and set the classes in the metadata.

    The records are those of detectron2's ``load_coco_json``.

    Raises:
        LabelsError: the set is registered with other classes, as detectron2's built-in ones are.
    """
    metadata = MetadataCatalog.get(name)
    classes = [category["name"] for category in content["categories"]]
    ids = {category["id"]: i for i, category in enumerate(content["categories"])}
    if metadata.get("thing_classes", classes) != classes:
        raise LabelsError(
            f"{metadata.json_file}: its {len(classes)} categories ({', '.join(classes[:5])}, ...) are not those of the "
            f"built-in set {name!r} ({len(metadata.thing_classes)}); name your own file by coco:{metadata.json_file}"
        )
    metadata.set(thing_classes=classes, thing_dataset_id_to_contiguous_id=ids)
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        keys = ("iscrowd", "bbox", "category_id", "segmentation")
        instance = {key: annotation[key] for key in keys if key in annotation}
        if annotation.get("keypoints"):  # pixel indices become coordinates
            instance["keypoints"] = [v + 0.5 if i % 3 != 2 else v for i, v in enumerate(annotation["keypoints"])]
        instance["category_id"] = ids[annotation["category_id"]]
        instance["bbox_mode"] = BoxMode.XYWH_ABS
        by_image[annotation["image_id"]].append(instance)
    return [
        {
            "file_name": os.path.join(metadata.image_root, image["file_name"]),  # noqa: PTH118
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": by_image[image["id"]],
        }
        for image in content["images"]
    ]


def _count(records: list[dict]) -> int:
    return sum(len(record["annotations"]) for record in records)
