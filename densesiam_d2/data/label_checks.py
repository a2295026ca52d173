"""Check the labels of a dataset before any model is built, and report what they contain and what is wrong with them."""

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.coco_json import read_coco
from densesiam_d2.labels.findings import Findings, Tally
from densesiam_d2.labels.foreground import FOREGROUND_CLASSES

from .coco_sets import adopt_coco, coco_records
from .datasets import check_records
from .image_file_checks import look_at_cityscapes_files, look_at_images
from .label_folders import load_label_folder, pair_files
from .label_map_checks import look_at_label_maps
from .voc_sets import adopt_voc, read_voc

__all__ = ["LABEL_MAP_KINDS", "SAMPLE", "LabelledSet", "adopt", "look_at", "require_labels"]

logger = logging.getLogger(__name__)

LABEL_MAP_KINDS = ("sem_seg", "cityscapes_sem_seg", "scenes")  # the evaluator_type of sets with label maps

SAMPLE = 1000  # number of image headers and label maps that a run checks, evenly spaced

_FILE_KINDS = {
    "load": ("error", "the set cannot be loaded"),
    "image-missing": (
        "error",
        "images that do not exist: {n}; names in a JSON are relative to images=DIR, or to its own folder, and VOC and "
        "COCO-Stuff name files with .jpg in small letters",
    ),
    "image-backslash": ("error", "images whose names have backslashes, as Windows writes paths: {n}; write / instead"),
    "image-unreadable": ("error", "images that cannot be read: {n}"),
    "image-size": ("error", "images whose width and height are not those of their file: {n}; correct the annotations"),
    "image-alone": ("warning", "images without a label map, left out: {n}"),
    "label-alone": ("warning", "label maps without an image, left out: {n}"),
    "label-missing": ("error", "label maps that do not exist: {n}"),
    "train-ids-missing": (
        "error",
        "label maps *_labelTrainIds.png that do not exist: {n}; make them by "
        "python -m cityscapesscripts.preparation.createTrainIdLabelImgs",
    ),
    "polygons-damaged": ("error", "files *_polygons.json that are cut or are no JSON: {n}; unpack them again"),
    "label-unreadable": ("error", "label maps that cannot be read: {n}"),
    "label-size": ("error", "label maps of another size than their image: {n}"),
    "label-palette": (
        "warning",
        "label maps whose palette shows a value in another colour than an earlier file: {n}; classes are the stored "
        "values, not the colours: were they saved as pictures?",
    ),
    "label-value": ("error", "label maps with values that are no class: {n}; correct them, the names or NUM_CLASSES"),
    "box-type": ("error", "annotations without a box or a class: {n}"),
    "category-unknown": ("error", "annotations of a class that does not exist: {n}"),
    "mask-missing": ("error", "annotations without a mask: {n}; set MODEL.MASK_ON False to train on boxes"),
    "none-left": ("error", "no annotation to learn from or to score"),
    "all-ignored": ("error", "every pixel has the ignore label"),
    "one-class": ("error", "one class only has any pixel, so there is nothing to tell apart"),
    "class-unused": ("warning", "classes that never occur: {n}"),
}


@dataclass
class LabelledSet:
    """The result of the check of one dataset.

    Attributes:
        name: name of the dataset.
        classes: names of its classes, in the order of the class numbers in the records; None if unknown.
        findings: errors, warnings and repairs.
        images: paths of the images.
        num_annotations: number of instances; None for label maps.
    """

    name: str
    classes: list[str] | None = None
    findings: Findings = field(default_factory=Findings)
    images: list[str] = field(default_factory=list)
    num_annotations: int | None = None


def look_at(
    name: str, *, semantic: bool, masks: bool, sample: int | None = SAMPLE, classes: Sequence[str] | None = None
) -> LabelledSet:
    """Check the labels of a registered dataset.

    Args:
        name: name of the dataset.
        semantic: whether label maps are needed; otherwise instances are. Of a set in COCO's format, the masks of the
            instances make label maps of background and foreground.
        masks: whether instances need masks.
        sample: number of image headers and label maps to read; None reads all.
        classes: names of the values of label maps, if the set itself has none.

    Returns:
        The result. Errors in the labels are not raised, they are part of its findings.
    """
    adopt(name)
    metadata = MetadataCatalog.get(name)
    result = LabelledSet(name, classes=classes)
    tally = Tally(_FILE_KINDS, name)
    foreground = semantic and metadata.get("evaluator_type") == "coco"
    masks = masks or foreground
    try:
        if semantic and not foreground:
            _look_at_semantic(result, metadata, sample, tally)
        elif metadata.get("evaluator_type") == "cityscapes_instance":
            result.classes = metadata.get("thing_classes")
            _look_at_cityscapes(result, metadata, ("instanceIds.png", "polygons.json"), tally)
        elif metadata.get("evaluator_type") == "pascal_voc":
            records, result.findings = read_voc(metadata)
            result.classes = metadata.thing_classes
            _look_at_instances(result, records, sample, tally, needs_masks=masks)
        elif metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            content, findings = read_coco(metadata.json_file, masks=masks, subset=metadata.get("subset"))
            result.findings += findings
            records = coco_records(name, content)
            result.classes = metadata.thing_classes
            _look_at_instances(result, records, sample, tally, checked=True)
        else:
            records = DatasetCatalog.get(name)
            result.classes = metadata.get("thing_classes")
            _look_at_instances(result, records, sample, tally, needs_masks=masks)
        if foreground:
            result.classes = FOREGROUND_CLASSES
            if not result.num_annotations:  # all would be background
                tally.note("none-left", f"{len(result.images)} images")
    except (ValueError, OSError, AssertionError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, ValueError | OSError):
            tally.note("load", str(error))
        else:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            tally.note("load", f"{text}, in {place.filename}, line {place.lineno}")
    result.findings += tally.findings()
    return result


def require_labels(name: str, *, semantic: bool, masks: bool) -> LabelledSet:
    """Check the labels of a registered dataset as :func:`look_at` does, and log the findings.

    Raises:
        LabelsError: the labels cannot be used.
    """
    result = look_at(name, semantic=semantic, masks=masks)
    result.findings.raise_errors()
    for finding in result.findings:
        logger.warning("%s", finding)
    return result


def adopt(name: str, accept: Sequence[str] = ()) -> None:
    """Make this package the reader of a set that detectron2's functions registered, with our repairs and messages.

    A set in COCO's format also gets the two classes that its instances are for models that predict label maps.

    Args:
        name: name of the dataset.
        accept: kinds of findings that are accepted and so raise no error.
    """
    adopt_coco(name, accept)
    adopt_voc(name, accept)
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") == "coco" and metadata.get("stuff_classes") is None:
        metadata.set(stuff_classes=FOREGROUND_CLASSES, ignore_label=IGNORE)


def _look_at_instances(
    result: LabelledSet,
    records: Sequence[dict],
    sample: int | None,
    tally: Tally,
    *,
    checked: bool = False,
    needs_masks: bool = False,
) -> None:
    """Count the instances of records and check the image files; unless ``checked``, check the instances too."""
    counts = Counter()
    for record in records:
        for number, annotation in enumerate(record.get("annotations", ())):
            counts[annotation.get("category_id")] += 1
            if checked:
                continue
            name = f"{record['file_name']}, annotation {annotation.get('id', number)}"
            if "category_id" not in annotation or len(annotation.get("bbox", ())) < 4:
                tally.note("box-type", name)
            elif result.classes and not 0 <= annotation["category_id"] < len(result.classes):
                allowed = f"0 to {len(result.classes) - 1}"
                tally.note(
                    "category-unknown", f"{name}: category_id {annotation['category_id']}, classes are {allowed}"
                )
            elif needs_masks and not annotation.get("segmentation"):
                tally.note("mask-missing", name)
    result.images, result.num_annotations = [record["file_name"] for record in records], counts.total()
    if not checked:
        if not result.num_annotations and not result.findings.of("error"):
            mapped = any("sem_seg_file_name" in record for record in records)
            maps = ", which have label maps, but this model learns from objects" if mapped else ""
            tally.note("none-left", f"{len(records)} images{maps}")
        for number, name in enumerate(result.classes or ()):
            if result.num_annotations and not counts[number]:
                tally.note("class-unused", repr(name))
    check_records([result.name], records)
    look_at_images(records, sample, tally)


def _look_at_cityscapes(result: LabelledSet, metadata: Metadata, kinds: Sequence[str], tally: Tally) -> None:
    images = sorted(Path(metadata.image_dir).glob("*/*"))
    result.images = list(map(str, images))
    look_at_cityscapes_files(images, metadata, kinds, tally)


def _look_at_semantic(result: LabelledSet, metadata: Metadata, sample: int | None, tally: Tally) -> None:
    """Check a set with label maps."""
    result.classes = metadata.get("stuff_classes") or result.classes
    if metadata.get("evaluator_type") == "cityscapes_sem_seg":
        _look_at_cityscapes(result, metadata, ("labelTrainIds.png", "polygons.json", "labelIds.png"), tally)
        if tally.findings():
            return
    loader = DatasetCatalog[result.name]
    if getattr(loader, "func", None) is load_label_folder:
        records, images_alone, labels_alone = pair_files(*loader.args)
        for kind, paths in (("image-alone", images_alone), ("label-alone", labels_alone)):
            for path in paths:
                tally.note(kind, path)
    else:
        records = loader()
    result.images = [record["file_name"] for record in records]
    check_records([result.name], records)
    look_at_label_maps(records, result.classes, metadata, sample, tally)
