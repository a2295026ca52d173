"""Labelled datasets in COCO's JSON format: ``labels/coco_json.py`` reads and repairs them, this file makes records."""

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

# The module that defines the loaders of ``register_coco_instances`` and of detectron2's built-in sets.
_DETECTRON2_COCO = "detectron2.data.datasets.coco"


def register_coco(name: str, json_file: Path, image_root: Path, subset: tuple[int, int] | None = None) -> None:
    """Register annotations in COCO's format under a name.

    Args:
        name: name of the dataset.
        json_file: annotation file; it is read when the dataset is loaded, not here.
        image_root: folder to which the file names in ``json_file`` are relative.
        subset: number of annotated images to draw at random, and the seed of the draw; None takes all images.
    """
    DatasetCatalog.register(name, functools.partial(load_coco, name))
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), evaluator_type="coco")
    if subset:
        MetadataCatalog.get(name).subset = subset


def adopt_coco(name: str, accept: Sequence[str] = ()) -> None:
    """Make :func:`load_coco` the reader of a set that detectron2's ``register_coco_instances`` or ours registered.

    detectron2's own reader fails on some annotations whose meaning is clear, and keeps others that have no meaning.
    """
    loader = DatasetCatalog[name]
    if getattr(loader, "__module__", None) == _DETECTRON2_COCO or getattr(loader, "func", None) is load_coco:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(load_coco, name, accept))


def load_coco(name: str, accept: Sequence[str] = ()) -> list[dict]:
    """Load a registered set in COCO's format.

    Args:
        name: name of the dataset; its metadata has "json_file" and "image_root", and may have "subset".
        accept: kinds of findings that are accepted and so raise no error.

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
    """Turn the content that ``read_coco`` returns into detectron2's records, and set the classes in the metadata.

    The records have the same form as those of detectron2's ``load_coco_json``.

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
        if annotation.get("keypoints"):  # x and y are pixel indices and become coordinates; visibility stays
            instance["keypoints"] = [v + 0.5 if i % 3 != 2 else v for i, v in enumerate(annotation["keypoints"])]
        instance["category_id"] = ids[annotation["category_id"]]
        instance["bbox_mode"] = BoxMode.XYWH_ABS
        by_image[annotation["image_id"]].append(instance)
    return [
        {
            "file_name": os.path.join(metadata.image_root, image["file_name"]),  # noqa: PTH118
            **{key: image[key] for key in ("height", "width") if image[key]},  # 0 stands for unknown, an error already
            "image_id": image["id"],
            "annotations": by_image[image["id"]],
        }
        for image in content["images"]
    ]


def _count(records: list[dict]) -> int:
    return sum(len(record["annotations"]) for record in records)
