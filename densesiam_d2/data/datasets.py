"""Register the built-in datasets and folders with label maps, and check the datasets of a config before a run."""

import difflib
import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from .cityscapes27 import register_cityscapes27
from .coco_stuff import register_coco_stuff27
from .image_index import ImageFiles
from .image_listing import load_image_folder, load_image_list, walk_images
from .label_folders import register_label_folder
from .path_datasets import FOLDER_PREFIX, LIST_PREFIX, register_path_datasets
from .record_paths import check_record_paths

__all__ = [
    "check_datasets",
    "datasets_root",
    "register_all_datasets",
    "register_sem_seg_folder",
    "scored_sets",
    "used_sets",
]

# Datasets of images without annotations, and their folders below the root of all datasets.
_IMAGE_FOLDERS = {
    "imagenet_train": ["imagenet/train"],
    "imagenet_val": ["imagenet/val"],
    "coco_2017_train_images": ["coco/train2017"],
    "coco_2017_unlabeled": ["coco/unlabeled2017"],
    "coco_2017_plus": ["coco/train2017", "coco/unlabeled2017"],
}

# The 11 classes of CamVid in the order of the SegNet tutorial's label maps. The last three are things, others stuff.
_CAMVID_CLASSES = (
    "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()  # noqa: SIM905
)

# Metadata keys of detectron2's and our datasets: those that name a file, and those that name a folder of images or
# label maps.
_FILE_KEYS = ("json_file", "panoptic_json")
_FOLDER_KEYS = ("image_root", "image_dir", "sem_seg_root", "gt_dir", "panoptic_root")


def datasets_root() -> Path:
    """Return the root folder of all datasets, the same as detectron2's: $DETECTRON2_DATASETS, by default "datasets"."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_all_datasets(root: str | Path) -> None:
    """Register datasets that detectron2 lacks: images of ImageNet and COCO, COCO-Stuff 27, Cityscapes 27 and 7, CamVid.

    Args:
        root: the folder that holds ``imagenet``, ``coco``, ``cityscapes`` and ``camvid``. Nothing in it is read yet.
    """
    root = Path(root)
    for name, folders in _IMAGE_FOLDERS.items():
        folders = [str(root / folder) for folder in folders]
        DatasetCatalog.register(name, lambda folders=folders: load_image_folder(*folders))
        MetadataCatalog.get(name).set(image_roots=folders)
    for split in ("train", "val", "test"):
        name = f"camvid_{split}"
        camvid = root / "camvid"
        register_sem_seg_folder(name, camvid / "images" / split, camvid / "labels" / split, _CAMVID_CLASSES)
        MetadataCatalog.get(name).set(thing_ids=[8, 9, 10], stuff_ids=list(range(8)))
    register_coco_stuff27(root / "coco")
    register_cityscapes27(root / "cityscapes")


def register_sem_seg_folder(
    name: str,
    image_root: str | Path,
    label_root: str | Path,
    classes: Sequence[str],
    ignore_label: int = 255,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Register a folder of images and a folder of label maps (PNG) of the same names as a semantic segmentation set.

    Args:
        name: the dataset's name.
        image_root, label_root: the folders; an image and a label map form a pair if their paths below these folders
            are equal without the endings.
        classes: name of each label value, from 0 on.
        ignore_label: label value that does not count.
        colors: RGB of each class, for drawings.
    """
    register_label_folder(name, Path(image_root), Path(label_root), classes, ignore_label=ignore_label)
    if colors is not None:
        MetadataCatalog.get(name).stuff_colors = [tuple(color) for color in colors]


_OTHER_SCORED = ("TEST.SEM_SEG_MATCHING_FIT", "TEST.MONITOR.DATASET")


def scored_sets(cfg: CfgNode) -> list[str]:
    """Return the labelled sets that a run evaluates its model on, in training or at its end."""
    used = used_sets(cfg)
    return [name for key in ("DATASETS.TEST", *_OTHER_SCORED) for name in used[key]]


def used_sets(cfg: CfgNode) -> dict[str, list[str]]:
    """Return all sets of a run: config key -> names; those of the probe have label maps or instances."""
    single = {key: attrgetter(key)(cfg) for key in (*_OTHER_SCORED, "TEST.PROBE.TRAIN", "TEST.PROBE.TEST")}
    several = {"DATASETS.TRAIN": list(cfg.DATASETS.TRAIN), "DATASETS.TEST": list(cfg.DATASETS.TEST)}
    return several | {key: [name] if name else [] for key, name in single.items()}


def check_datasets(cfg: CfgNode) -> None:
    """Check, before any model is built, that the datasets of a config exist; also register its path datasets.

    No image and no annotation file is opened, only lists and indexes of images and files of class names. One error
    names all problems.

    Args:
        cfg: a config; the keys of :func:`used_sets` are read.

    Raises:
        ValueError: a name is not known, or DATASETS.TEST names a set twice.
        FileNotFoundError: all names are known, but some data is missing.
    """
    twice = sorted({name for name in cfg.DATASETS.TEST if cfg.DATASETS.TEST.count(name) > 1})
    if twice:
        raise ValueError(f"DATASETS.TEST names {', '.join(twice)} more than once: scores go by name, so name it once")
    unknown, missing = [], []
    for key, names in used_sets(cfg).items():
        for name in names:
            where = f"{key} {name!r}"
            try:
                register_path_datasets([name])
            except (ValueError, FileNotFoundError) as error:
                missing.append(f"{where}: {error}")
                continue
            if name not in DatasetCatalog:
                unknown.append(f"{where} is not a dataset{_suggest(name)}")
                continue
            missing += [f"{where}: {problem}" for problem in _find_problems(MetadataCatalog.get(name))]
    if unknown or missing:
        root = datasets_root()
        problems = "\n".join([*unknown, *missing])
        text = f"{problems} (datasets/README.md shows what belongs where; sets with a name lie in {root.absolute()})"
        raise (ValueError if unknown else FileNotFoundError)(text)


def check_records(names: Sequence[str], records: Sequence[dict], num_classes: int | None = None) -> None:
    """Check that records name local files below their datasets' image folders, and classes that exist.

    Args:
        names: names of the registered datasets.
        records: the records of all these datasets, as detectron2's dataset dicts.
        num_classes: number of classes of instances; None skips the check of "annotations".

    Raises:
        ValueError: a file is not local or lies outside these folders, or a category does not exist.
    """
    roots = []
    for metadata in map(MetadataCatalog.get, names):
        own = [metadata.get("image_root"), metadata.get("image_dir"), metadata.get("dirname")]
        own = [root for root in (*own, *metadata.get("image_roots", ())) if root]
        if not own:  # a list of files, or a set registered without these keys: files may lie anywhere
            roots = []
            break
        roots += own
    check_record_paths([{"file_name": record["file_name"]} for record in records], roots)
    check_record_paths(records)
    for record in records if num_classes is not None else ():
        for annotation in record.get("annotations", ()):
            if not 0 <= annotation["category_id"] < num_classes:
                which = annotation.get("id", record["annotations"].index(annotation))
                raise ValueError(
                    f"{record['file_name']}: annotation {which} has the category {annotation['category_id']}; "
                    f"MODEL.ROI_HEADS.NUM_CLASSES {num_classes} allows 0 to {num_classes - 1}"
                )


def _suggest(name: str) -> str:
    nearest = difflib.get_close_matches(name, DatasetCatalog.keys(), n=3)
    if nearest:
        return f"; did you mean {' or '.join(nearest)}?"
    return f"; images of your own are named {FOLDER_PREFIX}/path or {LIST_PREFIX}/path.txt"


def _find_problems(metadata: Metadata) -> list[str]:
    """Say which files, folders and packages (of the ``[demo]`` extra) of a dataset are missing or empty."""
    files = [metadata.get(key) for key in _FILE_KEYS]
    folders = [*(metadata.get(key) for key in _FOLDER_KEYS), *metadata.get("image_roots", ())]
    if metadata.get("evaluator_type") == "pascal_voc":
        root = Path(metadata.dirname)
        files.append(root / "ImageSets" / "Main" / f"{metadata.split}.txt")
        folders.append(root / "JPEGImages")
    problems = [
        f"its photographs need {name}: pip install 'densesiam_d2[demo]' (in a checkout: pip install -e '.[demo]')"
        for name in metadata.get("packages", ())
        if importlib.util.find_spec(name) is None
    ]
    absent = [Path(file) for file in files if file and not Path(file).is_file()]
    problems += [f"{f} is a folder, not a file" if f.is_dir() else f"the file {f} does not exist" for f in absent]
    # Images that annotations name may have any ending.
    find = _find_missing_folder if metadata.get("json_file") else _find_folder_problem
    problems += [problem for folder in folders if folder and (problem := find(Path(folder)))]
    if metadata.get("image_list"):
        try:
            load_image_list(metadata.image_list)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    if metadata.get("image_index"):
        try:
            ImageFiles.open(metadata.image_index)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    return problems


def _find_missing_folder(folder: Path) -> str | None:
    if folder.is_dir():
        return None
    return f"{folder} is a file, not a folder" if folder.exists() else f"the folder {folder} does not exist"


def _find_folder_problem(folder: Path) -> str | None:
    if problem := _find_missing_folder(folder):
        return problem
    others = Counter()
    if next(walk_images(folder, others), None) is not None:
        return None
    return f"the folder {folder} holds no images (among {others.total()} files)"
