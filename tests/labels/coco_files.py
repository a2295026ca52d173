"""Small COCO files to try oddities on."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 96, 64
CATEGORIES = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco(num_images: int = 3) -> dict:
    """Return two annotations an image, a red and a blue rectangle, with polygons; ids count from 1."""
    content = {"images": [], "annotations": [], "categories": copy.deepcopy(CATEGORIES)}
    for i in range(1, num_images + 1):
        content["images"].append({"id": i, "file_name": f"p{i}.png", "width": WIDTH, "height": HEIGHT})
        for category, box in ((1, [10, 10, 40, 30]), (2, [55, 20, 35, 40])):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": box[2] * box[3],
                    "bbox": box,
                    "segmentation": [rectangle(*box)],
                }
            )
    return content


def write(content: dict, folder: Path, name: str = "train.json", images: bool = True) -> Path:
    """Write the annotations, and with ``images`` the pictures that they describe below ``folder/images``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content))
    for image in content["images"] if images else ():
        file = folder / "images" / image["file_name"]
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            cv2.rectangle(picture, (10, 10), (49, 39), (0, 0, 255), cv2.FILLED)
            cv2.rectangle(picture, (55, 20), (89, 59), (255, 0, 0), cv2.FILLED)
            cv2.imwrite(str(file), picture)
    return path
