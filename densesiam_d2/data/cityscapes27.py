"""Cityscapes for unsupervised segmentation: the 27 classes of the raw label ids 7 to 33, and their 7 groups."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.labels import IGNORE

from .image_listing import load_image_folder

__all__ = [
    "CITYSCAPES27_CLASSES",
    "CITYSCAPES7_CLASSES",
    "cityscapes27_label_map",
    "cityscapes7_label_map",
    "register_cityscapes27",
]

FIRST_ID = 7  # the classes are the raw label ids from 7 to 33

# Names and colours of the raw label ids 7 to 33, as in cityscapesscripts/helpers/labels.py.
_CLASSES = [
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("parking", (250, 170, 160)),
    ("rail track", (230, 150, 140)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("guard rail", (180, 165, 180)),
    ("bridge", (150, 100, 100)),
    ("tunnel", (150, 120, 90)),
    ("pole", (153, 153, 153)),
    ("polegroup", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("caravan", (0, 0, 90)),
    ("trailer", (0, 0, 110)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
]
CITYSCAPES27_CLASSES = [name for name, _ in _CLASSES]

# The 7 groups with their names in cityscapesscripts, their first raw label id, and the colour of one of their classes.
_GROUPS = [
    ("flat", 7, (128, 64, 128)),
    ("construction", 11, (70, 70, 70)),
    ("object", 17, (153, 153, 153)),
    ("nature", 21, (107, 142, 35)),
    ("sky", 23, (70, 130, 180)),
    ("human", 24, (220, 20, 60)),
    ("vehicle", 26, (0, 0, 142)),
]
CITYSCAPES7_CLASSES = [name for name, _, _ in _GROUPS]


def cityscapes27_label_map() -> list[int]:
    """Return the class (0-26) of each value of a labelIds PNG, or 255 for values without a class.

    Source: janghyuncho/PiCIE, ``data/cityscapes_*_dataset.py``.
    """
    label_map = [IGNORE] * 256
    for i in range(len(_CLASSES)):
        label_map[FIRST_ID + i] = i
    return label_map


def cityscapes7_label_map() -> list[int]:
    """Return the group (0-6) of each value of a labelIds PNG, or 255 for values without a class.

    Source: janghyuncho/PiCIE, ``data/cityscapes_*_dataset.py``.
    """
    label_map = [IGNORE] * 256
    for group, (_, first, _) in enumerate(_GROUPS):  # later groups overwrite the ids that belong to them
        last = FIRST_ID + len(_CLASSES)
        label_map[first:last] = [group] * (last - first)
    return label_map


def load_cityscapes27_val(root: str | Path) -> list[dict]:
    """List the labelled images: ``val``, then ``train``.

    Args:
        root: the ``cityscapes`` folder, with ``leftImg8bit`` and ``gtFine``.

    Returns:
        Dicts of "file_name", "sem_seg_file_name" and "image_id".

    Raises:
        FileNotFoundError: a folder or some of the label maps are missing.
        ValueError: a folder holds no image.
    """
    root = Path(root)
    records = load_image_folder(*(root / "leftImg8bit" / split for split in ("val", "train")))
    for record in records:
        image = Path(record["file_name"]).relative_to(root / "leftImg8bit")
        label = image.name.replace("_leftImg8bit", "_gtFine_labelIds")
        record["sem_seg_file_name"] = str(root / "gtFine" / image.parent / label)
    missing = [r["sem_seg_file_name"] for r in records if not Path(r["sem_seg_file_name"]).is_file()]
    if missing:
        others = [path for path in missing if Path(path.replace("labelIds", "labelTrainIds")).is_file()]
        hint = (
            "; their *_labelTrainIds.png are there, but the 27 classes need *_labelIds.png of gtFine" if others else ""
        )
        raise FileNotFoundError(f"{len(missing)} of {len(records)} label maps are missing, first {missing[0]}{hint}")
    return records


def register_cityscapes27(root: str | Path) -> None:
    """Register ``cityscapes27_train`` (test and train_extra images) and ``cityscapes27_val`` (val and train, labelled).

    ``cityscapes7_train`` and ``cityscapes7_val`` are the same images with the 7 groups as classes.

    Args:
        root: the ``cityscapes`` folder.
    """
    colors27, colors7 = [color for _, color in _CLASSES], [color for _, _, color in _GROUPS]
    _register(root, "cityscapes27", CITYSCAPES27_CLASSES, colors27, cityscapes27_label_map())
    _register(root, "cityscapes7", CITYSCAPES7_CLASSES, colors7, cityscapes7_label_map())


def _register(root: str | Path, prefix: str, classes: list[str], colors: list, label_map: list[int]) -> None:
    images = Path(root) / "leftImg8bit"
    train = [str(images / split) for split in ("test", "train_extra")]
    DatasetCatalog.register(f"{prefix}_train", lambda: load_image_folder(*train))
    MetadataCatalog.get(f"{prefix}_train").set(image_roots=train)
    DatasetCatalog.register(f"{prefix}_val", lambda: load_cityscapes27_val(root))
    MetadataCatalog.get(f"{prefix}_val").set(
        image_roots=[str(images / split) for split in ("val", "train")],
        sem_seg_root=str(Path(root) / "gtFine"),
    )
    for split in ("train", "val"):
        MetadataCatalog.get(f"{prefix}_{split}").set(
            stuff_classes=classes,
            stuff_colors=colors,
            ignore_label=IGNORE,
            label_map=label_map,
            raw_values=range(34),
            raw_values_hint="*_labelIds.png of gtFine have values up to 33; these are other files of that name",
            evaluator_type="sem_seg",
        )
