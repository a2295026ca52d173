"""Dataset trees in the layouts of Cityscapes and Pascal VOC, written from the real images of CamVid and COCO-128."""

import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

# CamVid id -> Cityscapes label id and trainId.
CAMVID_TO_LABEL_ID = {0: 23, 1: 11, 2: 17, 3: 7, 4: 8, 5: 21, 6: 20, 7: 13, 8: 26, 9: 24, 10: 25, 255: 0}
CAMVID_TO_TRAIN_ID = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 255: 255}
CAMVID_THINGS = (8, 9, 10)  # car, pedestrian, bicyclist

COCO_TO_VOC = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


def real_data(name: str) -> Path:
    """Return a folder of the shared real data, or skip the test."""
    root = Path(os.environ.get("DENSESIAM_D2_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"real data {name} not found in {root} (set DENSESIAM_D2_TEST_DATA)")
    return root / name


def write_cityscapes_tree(camvid_root: Path, out: Path, limit: int, splits=("train", "val", "test")) -> None:
    """Write `limit` CamVid images per split as a Cityscapes tree of two cities; instances are connected components."""
    for split in splits:
        images = sorted((camvid_root / "images" / split).glob("*.jpg"))[:limit]
        for index, image_file in enumerate(images):
            city = ("cambridge", "camvid")[index % 2]
            stem = f"{city}_000000_{index:06d}"
            label = np.asarray(Image.open(camvid_root / "labels" / split / f"{image_file.stem}.png"))
            image_dir, gt_dir = out / "leftImg8bit" / split / city, out / "gtFine" / split / city
            image_dir.mkdir(parents=True, exist_ok=True)
            gt_dir.mkdir(parents=True, exist_ok=True)
            Image.open(image_file).save(image_dir / f"{stem}_leftImg8bit.png")
            label_ids, instance_ids, objects = _cityscapes_labels(label)
            Image.fromarray(label_ids).save(gt_dir / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(_mapped(label, CAMVID_TO_TRAIN_ID)).save(gt_dir / f"{stem}_gtFine_labelTrainIds.png")
            Image.fromarray(instance_ids.astype(np.uint16)).save(gt_dir / f"{stem}_gtFine_instanceIds.png")
            height, width = label.shape
            content = {"imgHeight": height, "imgWidth": width, "objects": objects}
            (gt_dir / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))


def _mapped(label: np.ndarray, mapping: dict[int, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[list(mapping)] = list(mapping.values())
    return table[label]


def _cityscapes_labels(label: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Return labelIds, instanceIds (label id * 1000 + number, in Cityscapes' way) and the polygons of the things."""
    from cityscapesscripts.helpers.labels import id2label

    label_ids = _mapped(label, CAMVID_TO_LABEL_ID)
    instance_ids = label_ids.astype(np.int64)
    objects = []
    for camvid_id in CAMVID_THINGS:
        label_id = CAMVID_TO_LABEL_ID[camvid_id]
        count, components = cv2.connectedComponents((label == camvid_id).astype(np.uint8))
        for number in range(1, count):
            mask = components == number
            instance_ids[mask] = label_id * 1000 + number - 1
            contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
            polygons = [contour.reshape(-1, 2).tolist() for contour in contours if len(contour) >= 3]
            objects += [{"label": id2label[label_id].name, "polygon": polygon} for polygon in polygons]
    return label_ids, instance_ids, objects


def write_voc_tree(coco128_root: Path, out: Path, split: str = "test") -> None:
    """Write the COCO-128 images with objects of VOC's 20 classes as a VOC tree: 1-based inclusive integer boxes."""
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    coco = json.loads((coco128_root / "instances.json").read_text())
    names = {c["id"]: COCO_TO_VOC.get(c["name"], c["name"]) for c in coco["categories"]}
    objects: dict[int, list] = {}
    for annotation in coco["annotations"]:
        if names[annotation["category_id"]] in CLASS_NAMES:
            objects.setdefault(annotation["image_id"], []).append(annotation)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (out / folder).mkdir(parents=True)
    written = []
    for image in coco["images"]:
        if image["id"] in objects:
            stem = Path(image["file_name"]).stem
            shutil.copy(coco128_root / "images" / Path(image["file_name"]).name, out / "JPEGImages" / f"{stem}.jpg")
            _write_voc_xml(out / "Annotations" / f"{stem}.xml", image, objects[image["id"]], names)
            written.append(stem)
    (out / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(written) + "\n")


def _write_voc_xml(path: Path, image: dict, annotations: list[dict], names: dict[int, str]) -> None:
    root = ET.Element("annotation")
    size = ET.SubElement(root, "size")
    for key in ("width", "height"):
        ET.SubElement(size, key).text = str(image[key])
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        element = ET.SubElement(root, "object")
        for key, value in (("name", names[annotation["category_id"]]), ("pose", "Unspecified")):
            ET.SubElement(element, key).text = value
        for key in ("truncated", "difficult"):
            ET.SubElement(element, key).text = "0"
        box = ET.SubElement(element, "bndbox")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for key, value in corners.items():
            ET.SubElement(box, key).text = str(round(value))
    ET.ElementTree(root).write(path)
