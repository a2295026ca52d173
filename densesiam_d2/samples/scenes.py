"""Draw any number of labelled scenes from a seed: data for demos and tests that needs no download.

A scene is a few bands of textured stuff, with textured things in front of them and of each other. Every pixel has a
class, and every thing has an instance mask of its visible part. ``textures.py`` describes the classes.

``python -m densesiam_d2.tools.draw_scenes`` writes a set of them into a folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .textures import STUFF_TEXTURES, THING_PATTERNS, THING_SHAPES
from .writing import mask_to_polygons, to_annotation, write_folder, write_jpeg

__all__ = [
    "CLASSES",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "Scene",
    "draw_scene",
    "write_scenes",
]

STUFF_CLASSES = tuple(STUFF_TEXTURES)
THING_CLASSES = tuple(THING_SHAPES)
# Ids of semantic labels: stuff first, then things.
CLASSES = STUFF_CLASSES + THING_CLASSES
COLORS = (
    (126, 178, 232),  # sky
    (28, 88, 178),  # water
    (124, 196, 74),  # grass
    (26, 112, 58),  # bush
    (232, 202, 128),  # sand
    (172, 84, 58),  # brick
    (232, 62, 140),  # ball
    (255, 150, 30),  # box
    (140, 80, 200),  # tent
    (250, 230, 50),  # star
)
# Part of meta.json. Increase it with every change after which scenes of the same seed look different.
VERSION = 1
_MIN_VISIBLE = 30  # pixels of a thing that must stay visible
_MAX_THINGS = 6


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        sem_seg: (H, W) uint8, an index into ``CLASSES`` at every pixel.
        instances: one dict per thing, back to front: ``category_id`` (index into ``THING_CLASSES``), ``mask`` ((H, W)
            bool, its visible pixels, without holes) and ``polygons`` (COCO polygons of the mask).
    """

    image: np.ndarray
    sem_seg: np.ndarray
    instances: list[dict]


def draw_scene(seed: int, index: int, size: int = 160) -> Scene:
    """Draw scene number ``index`` of a seed; the same arguments always give the same scene.

    Args:
        seed: seed of the set, at least 0.
        index: number of the scene, at least 0.
        size: side of the square image in pixels, at least 64.

    Raises:
        ValueError: if the size is too small to show anything.
    """
    if size < 64:
        raise ValueError(f"size={size}: scenes need at least 64 pixels.")
    rng = np.random.default_rng((seed, index))
    image, sem_seg = _draw_stuff(rng, size)
    owner = np.zeros((size, size), np.uint8)  # 0 = stuff, i + 1 = thing number i
    categories = []
    for _ in range(int(rng.integers(2, _MAX_THINGS + 1))):
        category = int(rng.integers(len(THING_CLASSES)))
        if _add_thing(rng, image, owner, len(categories) + 1, THING_CLASSES[category]):
            categories.append(category)
    instances = []
    for number, category in enumerate(categories, start=1):
        mask = owner == number
        sem_seg[mask] = len(STUFF_CLASSES) + category
        instances.append({"category_id": category, "mask": mask, "polygons": mask_to_polygons(mask)})
    light = rng.uniform(0.82, 1.12) * rng.uniform(0.95, 1.05, 3)  # brightness and colour cast of the whole scene
    noisy = image * light.astype(np.float32) + 3 * rng.standard_normal((size, size, 1), dtype=np.float32)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), sem_seg, instances)


def _draw_stuff(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw bands of stuff with wavy borders; return image (size, size, 3) float32 and labels (size, size) uint8."""
    classes = rng.permutation(len(STUFF_CLASSES))[: int(rng.integers(2, 5))]
    classes = sorted(classes, key=lambda c: STUFF_CLASSES[c] != "sky")  # the sky, if any, is on top
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    image = STUFF_TEXTURES[STUFF_CLASSES[classes[0]]](rng, size)
    sem_seg = np.full((size, size), classes[0], np.uint8)
    for band, label in enumerate(classes[1:], start=1):
        position = (band + rng.uniform(-0.25, 0.25)) / len(classes)
        slope, amplitude = rng.uniform(-0.35, 0.35), rng.uniform(0.0, 0.06)
        wave = amplitude * np.sin(2 * np.pi * (rng.uniform(0.7, 2.5) * x + rng.uniform()))
        below = y > position + slope * (x - 0.5) + wave
        np.copyto(image, STUFF_TEXTURES[STUFF_CLASSES[label]](rng, size), where=below[..., None])
        sem_seg[below] = label
    return image, sem_seg


def _add_thing(rng: np.random.Generator, image: np.ndarray, owner: np.ndarray, number: int, name: str) -> bool:
    """Paint one thing, unless it would hide another thing or make a hole in it. Return whether it was painted."""
    size = len(owner)
    radius = size * 0.075 * (2.8 ** rng.uniform())  # log-uniform
    centre = rng.uniform(0.06, 0.94, 2) * size
    angle = rng.uniform(-np.pi, np.pi) if name in ("ball", "star") else rng.uniform(-0.6, 0.6)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = THING_SHAPES[name](rng) @ rotation.T * radius + centre

    alpha = np.zeros((size, size), np.uint8)
    fixed_point = np.round((corners - 0.5) * 16).astype(np.int32)  # in cv2 the first pixel's centre is 0, here 0.5
    cv2.fillPoly(alpha, [fixed_point], 255, lineType=cv2.LINE_AA, shift=4)
    mask = alpha >= 128
    if mask.sum() < _MIN_VISIBLE or not _keeps_others_whole(owner, mask):
        return False
    owner[mask] = number

    x0, y0, width, height = cv2.boundingRect(alpha)
    window = (slice(y0, y0 + height), slice(x0, x0 + width))
    y, x = np.mgrid[window].astype(np.float32) + 0.5
    u, v = np.tensordot(rotation.T / radius, np.stack([x - centre[0], y - centre[1]]), axes=1).astype(np.float32)
    rim = cv2.erode(alpha, np.ones((3, 3), np.uint8), borderValue=255)[window] < 128
    paint = THING_PATTERNS[name](rng, u, v) * np.where(rim, 0.6, 1.0)[..., None]
    opacity = alpha[window][..., None] / np.float32(255)
    image[window] = image[window] * (1 - opacity) + paint * opacity
    return True


def _keeps_others_whole(owner: np.ndarray, mask: np.ndarray) -> bool:
    """Return whether all things under the mask stay visible and get no hole, because polygons cannot express holes."""
    for number in np.unique(owner[mask]):
        if number == 0:
            continue
        rest = ((owner == number) & ~mask).astype(np.uint8)
        _, hierarchy = cv2.findContours(rest, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if rest.sum() < _MIN_VISIBLE or (hierarchy is not None and (hierarchy[0, :, 3] >= 0).any()):
            return False
    return True


def write_scenes(root: Path, num: int, seed: int, size: int = 160) -> Path:
    """Draw scenes 0 to num - 1 of a seed into a folder, unless it holds exactly these scenes already.

    Args:
        root: the folder; gets ``images/*.jpg``, ``sem_seg/*.png``, ``instances.json`` (COCO) and ``meta.json``.
        num: number of scenes.
        seed: seed of the set.
        size: side of an image in pixels.

    Returns:
        The folder.

    Raises:
        ValueError: if ``num`` is below 1, or the folder holds files that are not of this dataset.
    """
    if num < 1:
        raise ValueError(f"num={num}: at least one scene is needed.")
    meta = {"kind": "densesiam_d2 scenes", "version": VERSION, "num": num, "seed": seed, "size": size}

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "sem_seg").mkdir()
        images, annotations = [], []
        for index in range(num):
            scene = draw_scene(seed, index, size)
            name = f"{index:05d}"
            write_jpeg(folder / "images" / f"{name}.jpg", scene.image)
            cv2.imwrite(str(folder / "sem_seg" / f"{name}.png"), scene.sem_seg)
            images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": size, "width": size})
            for instance in scene.instances:
                category_id = instance["category_id"] + 1
                annotations.append(to_annotation(instance["mask"], category_id, index + 1, len(annotations) + 1))
        categories = [{"id": i, "name": name} for i, name in enumerate(THING_CLASSES, start=1)]
        coco = {"info": meta, "images": images, "annotations": annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(coco))

    return write_folder(Path(root), meta, write)
