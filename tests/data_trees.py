"""Dataset trees in the layouts of Cityscapes and Pascal VOC, written from images of CamVid and COCO-128.

The images are the real ones, or drawn: :func:`draw_trees` writes a small tree of every layout that a recipe names.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data.coco_stuff import CURATED_LIST
from densesiam_d2.samples.scenes import draw_scene
from densesiam_d2.samples.writing import to_annotation, write_jpeg

# CamVid id -> Cityscapes label id and trainId.
CAMVID_TO_LABEL_ID = {0: 23, 1: 11, 2: 17, 3: 7, 4: 8, 5: 21, 6: 20, 7: 13, 8: 26, 9: 24, 10: 25, 255: 0}
CAMVID_TO_TRAIN_ID = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 255: 255}
CAMVID_THINGS = (8, 9, 10)  # car, pedestrian, bicyclist

# What the classes of drawn scenes, stuff and then things, are called in the drawn trees.
SCENE_TO_CAMVID = (0, 1, 2, 3, 4, 5, 8, 9, 10, 8)
SCENE_TO_COCO_STUFF = (156, 147, 123, 96, 153, 170, 0, 2, 17, 61)  # sky, river, grass, bush, sand, brick, then ids - 1
SCENE_THING_TO_COCO = (1, 3, 18, 62)  # person, car, dog, chair

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


def draw_trees(root: Path, num: int = 4, size: int = 96) -> None:
    """Write drawn images with labels in the layouts of ImageNet, COCO, COCO-Stuff, VOC, Cityscapes and CamVid.

    Args:
        root: what DETECTRON2_DATASETS would name.
        num: images of each split.
        size: side of an image in pixels.
    """
    for seed, split in enumerate(("train", "val", "unlabeled")):
        _draw_coco(root / "coco", f"{split}2017", num, seed, size)
    for seed, split in enumerate(("train", "val", "test", "train_extra")):
        _draw_camvid(root / "camvid", split, num, seed, size)
    write_cityscapes_tree(root / "camvid", root / "cityscapes", num, ("train", "val", "test", "train_extra"))
    coco, source = root / "coco", root / "voc_source"
    shutil.copytree(coco / "train2017", source / "images")
    shutil.copy(coco / "annotations" / "instances_train2017.json", source / "instances.json")
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        write_voc_tree(source, root / f"VOC{year}", splits[0])
        for split in splits[1:]:
            lists = root / f"VOC{year}" / "ImageSets" / "Main"
            shutil.copy(lists / f"{splits[0]}.txt", lists / f"{split}.txt")
    shutil.copytree(coco / "train2017", root / "imagenet" / "train" / "n01440764")


def _draw_coco(coco: Path, split: str, num: int, seed: int, size: int) -> None:
    """Write one split of COCO with its instances, its stuffthingmaps and the curated list of all its images."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    folders = [coco / split, coco / "stuffthingmaps" / split, coco / "annotations", coco / "curated" / split]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    images, annotations = [], []
    for image_id in range(seed * 1000 + 1, seed * 1000 + 1 + num):
        scene = draw_scene(seed, image_id, size)
        name = f"{image_id:012d}"
        write_jpeg(folders[0] / f"{name}.jpg", scene.image)
        Image.fromarray(np.array(SCENE_TO_COCO_STUFF, np.uint8)[scene.sem_seg]).save(folders[1] / f"{name}.png")
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size})
        for instance in scene.instances:
            category_id = SCENE_THING_TO_COCO[instance["category_id"]]
            annotations.append(to_annotation(instance["mask"], category_id, image_id, len(annotations) + 1))
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folders[2] / f"instances_{split}.json").write_text(json.dumps(content))
    (folders[3] / CURATED_LIST).write_text("".join(f"{image['file_name'][:-4]}\n" for image in images))


def _draw_camvid(camvid: Path, split: str, num: int, seed: int, size: int) -> None:
    images, labels = camvid / "images" / split, camvid / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(num):
        scene = draw_scene(10 + seed, index, size)
        write_jpeg(images / f"{index:04d}.jpg", scene.image)
        Image.fromarray(np.array(SCENE_TO_CAMVID, np.uint8)[scene.sem_seg]).save(labels / f"{index:04d}.png")
