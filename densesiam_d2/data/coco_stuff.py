"""COCO-Stuff 27: the curated benchmark of unsupervised segmentation, 182 fine classes merged into 27."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.colormap import colormap
from detectron2.utils.logger import log_first_n

from densesiam_d2.atomic import atomic_write
from densesiam_d2.image_io import read_label
from densesiam_d2.labels import IGNORE
from densesiam_d2.text_lines import read_lines

__all__ = ["COCO_STUFF27_CLASSES", "coco_stuff27_label_map", "is_curated", "register_coco_stuff27"]

CURATED_LIST = "Coco164kFull_Stuff_Coarse_7.txt"
PUBLISHED_SIZE = {"train": 49_629, "val": 2_175}
# sha256 of the published lists (one id of 12 digits a line), curated/{train,val}2017 in janghyuncho/PiCIE.
PUBLISHED_SHA256 = {
    "train": "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
    "val": "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655",
}

# Each coarse class and its fine ids, in the order of the coarse ids; the first 12 are things. Things and stuff share
# the names food and furniture, so these four have the ending -things or -stuff here.
_FINE_IDS = [
    ("electronic", "71-76"),
    ("appliance", "77-82"),
    ("food-things", "51-60"),
    ("furniture-things", "61-70"),
    ("indoor", "83-90"),
    ("kitchen", "43-50"),
    ("accessory", "25-32"),
    ("animal", "15-24"),
    ("outdoor", "9-14"),
    ("person", "0"),
    ("sports", "33-42"),
    ("vehicle", "1-8"),
    ("ceiling", "101-102"),
    ("floor", "100 113-117"),
    ("food-stuff", "120-121 152 169"),
    ("furniture-stuff", "97 106-107 109 111 122 129 132 155 160 164"),
    ("raw-material", "99 131 138 142"),
    ("textile", "91-92 103-104 108 130 136 140 151 166-167"),
    ("wall", "170-176"),
    ("window", "179-180"),
    ("building", "94-95 127 150 157 165"),
    ("ground", "110 124-125 135 139 143-144 146 148 153 158"),
    ("plant", "93 96 118 123 128 133 141 162 168"),
    ("sky", "105 156"),
    ("solid", "126 134 149 159 161 181"),
    ("structural", "98 112 137 145 163"),
    ("water", "119 147 154 177-178"),
]
NUM_THINGS = 12

COCO_STUFF27_CLASSES = [name for name, _ in _FINE_IDS]


def coco_stuff27_label_map() -> list[int]:
    """Return the coarse class (0-26) of each value of a stuffthingmaps PNG, or 255 for values without a class.

    Source: xu-ji/IIC ``code/datasets/segmentation/util``; the same table as PiCIE's ``fine_to_coarse_dict.pickle``.
    """
    label_map = [IGNORE] * 256
    for coarse, (_, ranges) in enumerate(_FINE_IDS):
        for entry in ranges.split():
            first, _, last = entry.partition("-")
            for fine in range(int(first), int(last or first) + 1):
                label_map[fine] = coarse
    return label_map


def is_curated(label: np.ndarray) -> bool:
    """Whether a label map belongs to the curated subset: both sides >= 360 pixels and >= 75 % of its pixels are stuff.

    Args:
        label: (H, W) uint8 of fine ids, as in stuffthingmaps.

    Source: xu-ji/IIC, ``code/datasets/segmentation/util/coco164k_prepare.py``.
    """
    coarse = np.array(coco_stuff27_label_map())
    is_stuff = (coarse >= NUM_THINGS) & (coarse != IGNORE)
    return min(label.shape) >= 360 and np.count_nonzero(is_stuff[label]) >= 0.75 * label.size


def load_coco_stuff27(root: str | Path, split: str) -> list[dict]:
    """List the images and labels of the curated subset.

    The list file is read if it exists; the names in it may have file endings. Otherwise all label maps are read, which
    takes minutes, and the list file is written for the next time. A warning tells, once, that the list is not the
    published one.

    Args:
        root: the ``coco`` folder.
        split: "train" or "val".

    Returns:
        Dicts of "file_name", "sem_seg_file_name" and "image_id".

    Raises:
        FileNotFoundError: neither the list file nor any label map exists.
        ValueError: the list file names no image, or no label map belongs to the subset.
    """
    root = Path(root)
    labels = root / "stuffthingmaps" / f"{split}2017"
    list_file = root / "curated" / f"{split}2017" / CURATED_LIST
    if list_file.is_file():
        names = [Path(word).stem for line in read_lines(list_file) for word in line.split()]
        if not names:
            raise ValueError(f"{list_file} names no image: delete it, and the images are chosen anew")
    else:
        names = _find_curated(labels)
        _write_list(list_file, names)
    if not is_published(names, split):
        text = (
            f"{list_file} has {len(names)} images and is not the published list of {PUBLISHED_SIZE[split]} (its sha256 "
            "differs): scores will not compare with the literature's"
        )
        log_first_n(logging.WARNING, text, key="message")
    return [
        {
            "file_name": str(root / f"{split}2017" / f"{name}.jpg"),
            "sem_seg_file_name": str(labels / f"{name}.png"),
            "image_id": int(name) if name.isdecimal() else name,
        }
        for name in names
    ]


def is_published(names: Sequence[str], split: str) -> bool:
    """Whether names of images, in this order, are those of the published list of a split.

    The list file itself may differ in endings of names and of lines.
    """
    content = "".join(f"{name}\n" for name in names)
    return hashlib.sha256(content.encode()).hexdigest() == PUBLISHED_SHA256[split]


def register_coco_stuff27(root: str | Path) -> None:
    """Register ``coco_stuff27_train`` and ``coco_stuff27_val`` below ``root``, the ``coco`` folder."""
    root = Path(root)
    for split in ("train", "val"):
        name = f"coco_stuff27_{split}"
        DatasetCatalog.register(name, lambda split=split: load_coco_stuff27(root, split))
        MetadataCatalog.get(name).set(
            image_root=str(root / f"{split}2017"),
            sem_seg_root=str(root / "stuffthingmaps" / f"{split}2017"),
            stuff_classes=COCO_STUFF27_CLASSES,
            stuff_colors=[tuple(map(int, color)) for color in colormap(rgb=True)[: len(COCO_STUFF27_CLASSES)]],
            ignore_label=IGNORE,
            label_map=coco_stuff27_label_map(),
            raw_values=[*range(182), IGNORE],
            raw_values_hint="stuff_*_pixelmaps have values above 181: unpack stuffthingmaps_trainval2017.zip instead",
            thing_ids=list(range(NUM_THINGS)),
            stuff_ids=list(range(NUM_THINGS, len(COCO_STUFF27_CLASSES))),
            evaluator_type="sem_seg",
        )


def _find_curated(labels: Path) -> list[str]:
    found = sorted(labels.glob("*.png"))
    files = [file for file in found if file.stem.isdecimal()]  # COCO names all images by numbers
    if not files:
        raise FileNotFoundError(f"no label maps (*.png) in {labels}: unpack stuffthingmaps_trainval2017.zip there")
    logger = logging.getLogger(__name__)
    if len(files) < len(found):
        example = next(file.name for file in found if not file.stem.isdecimal())
        logger.info("left out %d files that are no image's label map, such as %s", len(found) - len(files), example)
    logger.info("Choosing the curated subset among %d label maps ...", len(files))
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL, so the threads run in parallel
        chosen = pool.map(lambda file: is_curated(read_label(file)), files)
        names = [file.stem for file, keep in zip(files, chosen, strict=True) if keep]
    if not names:
        raise ValueError(
            f"none of the {len(files)} label maps in {labels} has both sides of 360 pixels or more, and 75 % stuff"
        )
    return names


def _write_list(list_file: Path, names: list[str]) -> None:
    try:
        with atomic_write(list_file, many_writers=True) as file:  # all processes of a run write it
            file.write("".join(f"{name}\n" for name in names).encode())
    except OSError as error:
        logging.getLogger(__name__).warning("The curated list could not be kept for the next time: %s", error)
