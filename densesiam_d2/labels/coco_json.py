"""Read instances JSON in COCO's format from any tool: check it, and repair mistakes whose meaning is clear.

Training and evaluation use the same result, so both leave out the same annotations.
"""

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from densesiam_d2.labels.boxes import judge_boxes
from densesiam_d2.labels.coco_kinds import COCO_KINDS
from densesiam_d2.labels.findings import Findings, Tally
from densesiam_d2.labels.masks import as_rle, clean_polygons, is_finite, mask_bounds, rle_problem
from densesiam_d2.labels.subset import evenly_spaced, subset_of
from densesiam_d2.text_lines import printable

__all__ = ["read_coco"]

MAX_SIDE = 1_000_000  # pixels
_UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, lone surrogates, and two kinds of line breaks
THIN = 2  # pixels; wider polygons cover at least one pixel
AREAS = 1000  # number of areas that are compared with their masks; all would take as long as reading the file
FEW = 0.01  # share of areas that may be wrong without a word
FACTOR = 2  # areas further from that of their mask are wrong
MASK_IN_BOX = 0.02  # least share of its box that a mask covers; one in a thousand of COCO's covers less


def read_coco(
    json_file: str | Path, *, masks: bool | None = True, subset: tuple[int, int] | None = None
) -> tuple[dict[str, list[dict]], Findings]:
    """Read annotations in COCO's format, and report problems.

    Args:
        json_file: the annotations.
        masks: True leaves out annotations without a usable mask, with a finding; False leaves out all masks, after they
            were used to check the boxes; None keeps usable masks, and only the box of other annotations.
        subset: number of annotated images to draw, and the seed.

    Returns:
        "categories" and "images", sorted by id, and "annotations" as in COCO, with ids from 1 (pycocotools takes 0 for
        "no match"), "area" and "iscrowd"; and the findings. If these include errors, the content is incomplete.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are fewer annotated images than ``subset`` asks for.
    """
    tally = Tally(COCO_KINDS, str(json_file))
    content = _load(Path(json_file), tally)
    images = _images(content["images"], tally)
    categories = _categories(content["categories"], tally)
    annotations, maskless = [], []
    if "json" not in tally and "no-annotations" not in tally:
        annotations, maskless = _annotations(content["annotations"], images, categories, masks, tally)
        _judge(annotations, content["annotations"], categories, tally)
        _judge_areas(annotations, images, tally)
    for annotation in annotations if masks is False else ():
        annotation.pop("segmentation", None)
    findings = tally.findings()
    if subset:
        # Those without a mask count, so that the same images are drawn whatever a model needs.
        annotated = {a["image_id"] for a in (*annotations, *maskless) if not a["iscrowd"]}
        annotated = sorted(annotated, key=lambda identity: (isinstance(identity, str), identity))
        number, seed = subset
        if findings.of("error"):  # which the caller may accept, and which may be why there are so few
            number = min(number, len(annotated))
        chosen = {annotated[i] for i in subset_of(len(annotated), number, seed)}
        images = {i: image for i, image in images.items() if i in chosen}
        annotations = [a for a in annotations if a["image_id"] in chosen]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    parts = {"categories": list(categories.values()), "images": list(images.values()), "annotations": annotations}
    return {**{key: content[key] for key in ("info", "licenses") if key in content}, **parts}, findings


LISTS = ("images", "categories", "annotations")
_NO_TEXT = {
    b"\x1f\x8b": "this is gzip: unpack it",
    b"PK\x03\x04": "this is a zip archive: unpack it",
    b"\xff\xfe": "this is UTF-16: save it as UTF-8",
    b"\xfe\xff": "this is UTF-16: save it as UTF-8",
}


def _load(path: Path, tally: Tally) -> dict[str, Any]:
    """Return the content of the file; each of its three lists is empty if it is missing."""
    if not path.is_file():
        what = "are a folder: name a file" if path.is_dir() else "do not exist"
        raise FileNotFoundError(f"the annotations {path} {what}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter: lists in lists in lists ...
        begin = path.open("rb").read(40)
        what = next((f"; {text}" for magic, text in _NO_TEXT.items() if begin.startswith(magic)), "")
        tally.note("json", f"{error}; the file begins with {begin!r}{what}")
        content, text = {key: [] for key in LISTS}, ""
    if not isinstance(content, dict):
        tally.note("json", f"no dict of images, annotations and categories, but {str(content)[:120]}")
        content = {key: [] for key in LISTS}
    for key in _repeated_lists(text):
        tally.note("json", f"the list {key!r} stands in it more than once: join the lists")
    keys = ", ".join(list(content)[:8])
    for key in LISTS:
        if not isinstance(content.get(key), list):
            only_these = key == "annotations" and key not in content and "json" not in tally
            text = f"there is no list {key!r}; the keys are {keys}"
            if key in content:
                text = f"{key!r} is a {type(content[key]).__name__}, not a list"
            tally.note("no-annotations" if only_these else "json", text)
            content[key] = []
    if any("segments_info" in entry for entry in content["annotations"][:1] if isinstance(entry, Mapping)):
        tally.note("json", "this is a panoptic file: name the file of instances (of COCO, instances_*.json)")
    return content


def _repeated_lists(text: str) -> list[str]:
    """Return the names of the lists that a file has more than once; Python's parser keeps the last of them alone."""
    if all(text.count(f'"{key}"') < 2 for key in LISTS):  # far faster than parsing once more
        return []
    keys = []

    def note_keys(pairs: list[tuple[str, Any]]) -> dict:
        keys[:] = [key for key, _ in pairs]  # at last those of the outermost dict
        return dict(pairs)

    json.loads(text, object_pairs_hook=note_keys)
    return [key for key in LISTS if keys.count(key) > 1]


def _images(entries: list, tally: Tally) -> dict[Any, dict]:
    """Return the images by id, sorted."""
    images, named = {}, {}
    for entry in entries:
        identity = _identity(entry)
        if not isinstance(identity, int | str) or not isinstance(entry.get("file_name"), str):
            tally.note("image-entry", str(entry)[:120])
            continue
        name = posixpath.normpath(entry["file_name"])
        if identity in images:
            tally.note("image-id-twice", f"{identity!r}: {images[identity]['file_name']}, {entry['file_name']}")
        elif name in named:
            tally.note("image-name-twice", f"{name}: ids {named[name]!r}, {identity!r}")
        named[name] = identity
        sizes = [entry.get(key) for key in ("width", "height")]
        if not all(map(_is_size, sizes)):
            tally.note(
                "image-size", f"{entry['file_name']}: width {str(sizes[0])[:40]!r}, height {str(sizes[1])[:40]!r}"
            )
            sizes = [0, 0]
        images[identity] = {**entry, "id": identity, "width": int(sizes[0]), "height": int(sizes[1])}
    for identity in images:
        if isinstance(identity, int) and 2**63 <= identity < 2**64:  # NumPy makes float64 of them and smaller ones
            tally.note("image-id-large", f"{identity}: {images[identity]['file_name']}")
    kinds = Counter(type(identity).__name__ for identity in images)
    if len(kinds) > 1:
        tally.note("image-id-mixed", ", ".join(f"{count} of type {kind}" for kind, count in kinds.items()))
    return dict(sorted(images.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _identity(entry: Any) -> Any:
    """Return the id of an image or a category; pandas writes whole numbers as 1.0."""
    identity = entry.get("id") if isinstance(entry, Mapping) else None
    return int(identity) if isinstance(identity, float) and identity.is_integer() else identity


def _is_size(value: Any) -> bool:
    return is_finite(value) and 1 <= value <= MAX_SIDE and value == int(value)


def _categories(entries: list, tally: Tally) -> dict[int, dict]:
    """Return the categories by id, sorted."""
    categories, names = {}, Counter()
    for entry in entries:
        identity = _identity(entry)
        if not isinstance(identity, int) or not isinstance(entry.get("name"), str):
            tally.note("category-entry", str(entry)[:120])
            continue
        name = entry["name"]
        if any(unicodedata.category(c) in _UNWRITABLE for c in name):
            tally.note("category-name", f"{name!r}, id {identity}")
            name = printable(name)
        names[name] += 1
        if identity in categories or names[name] > 1:
            tally.note("category-twice", f"{name!r}, id {identity}")
        categories[identity] = {**entry, "id": identity, "name": name}
    return dict(sorted(categories.items()))


def _annotations(
    entries: list, images: dict, categories: dict, masks: bool | None, tally: Tally
) -> tuple[list[dict], list[dict]]:
    """Return copies of the usable annotations, and, if masks are needed, of those that only lack a usable one."""
    kept, maskless, seen = [], [], {}
    texts = {"image": {str(i): i for i in images}, "category": {str(i): i for i in categories}}
    progress = tqdm(entries, desc="annotations", unit="", disable=None if len(entries) > 10_000 else True, leave=False)
    for position, entry in enumerate(progress):
        if not isinstance(entry, Mapping):
            tally.note("annotation-entry", str(entry)[:120])
            continue
        name = f"annotation {entry.get('id', f'no. {position + 1}')}"
        if not _known_ids(entry, name, images, categories, texts, tally):
            continue
        if _is_repeated(entry, name, seen, tally):
            continue
        image = images[entry["image_id"]]
        if not image["width"]:  # not known, which is already a finding
            continue
        if _is_rotated(entry):
            tally.note("box-rotated", name)
        annotation = {**entry, "iscrowd": _crowd(entry, name, tally)}
        if masks is not False and not _clean_mask(annotation, name, image, masks is True, tally):
            if masks and _clean_box(annotation, name, image, Tally(COCO_KINDS, "")):
                maskless.append(annotation)
            nothing = entry.get("segmentation") and not entry.get("bbox")
            if nothing and not masks:
                tally.note("mask-unusable", name)
            if masks or nothing:
                continue
        if not _clean_box(annotation, name, image, tally):
            continue
        area = annotation.get("area")
        if not is_finite(area) or area < 0 or (area == 0 and not annotation["iscrowd"]):
            tally.note("area", name)
            annotation["area"] = _area(annotation, image)
        if annotation.get("keypoints") and not _are_keypoints(annotation["keypoints"]):
            tally.note("keypoints", name)
            del annotation["keypoints"]
        kept.append(annotation)
    return kept, maskless


def _is_rotated(entry: Mapping) -> bool:
    """Tell whether CVAT wrote a rotated rectangle: its box as if it were upright, and the degrees as an attribute."""
    attributes = entry.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    return not entry.get("segmentation") and is_finite(rotation) and rotation % 360 != 0


def _are_keypoints(values: Any) -> bool:
    return isinstance(values, list) and len(values) % 3 == 0 and all(map(is_finite, values))


def _known_ids(entry: Mapping, name: str, images: dict, categories: dict, texts: dict, tally: Tally) -> bool:
    """Tell whether image and category of an annotation exist."""
    known = True
    for key, ids in (("image", images), ("category", categories)):
        identity = entry.get(f"{key}_id")
        if not isinstance(identity, int | float | str) or identity not in ids:
            same_text = str(identity) in texts[key]
            example = f"{name} has {key}_id {identity!r}"
            if same_text:
                example += f", the {key} has id {texts[key][str(identity)]!r}"
            elif key == "category":
                example += f", categories have {list(ids)[:8]}"
            if f"{key}-entry" not in tally:  # otherwise the reason is already a finding
                tally.note(f"{key}-id-type" if same_text else f"{key}-unknown", example)
            known = False
    return known


def _is_repeated(entry: Mapping, name: str, seen: dict, tally: Tally) -> bool:
    """Tell whether the same annotation came before; note missing and repeated ids."""
    identity = entry.get("id")
    if not isinstance(identity, int | str):
        tally.note("annotation-id", f"{name} of image {entry['image_id']}")
        return False
    if identity in seen:
        repeated = all(
            seen[identity].get(key) == entry.get(key) for key in ("image_id", "category_id", "bbox", "segmentation")
        )
        tally.note("annotation-twice" if repeated else "annotation-id", f"{name} of image {entry['image_id']}")
        return repeated
    seen[identity] = entry
    return False


def _crowd(entry: Mapping, name: str, tally: Tally) -> int:
    if str(entry.get("ignore")).lower() in ("1", "1.0", "true"):
        tally.note("ignore", name)
        return 1
    crowd = entry.get("iscrowd")
    if crowd in (0, 1, "0", "1"):
        return int(crowd)
    if str(crowd).lower() in ("true", "false"):
        return int(str(crowd).lower() == "true")
    tally.note("iscrowd", f"{name}: {crowd!r}")
    return 0


def _clean_mask(annotation: dict, name: str, image: dict, needed: bool, tally: Tally) -> bool:
    """Check the mask and remove unusable polygons; return whether any mask remains."""
    segmentation, size = annotation.pop("segmentation", None), (image["height"], image["width"])
    if not segmentation or segmentation == [[]]:
        if needed:
            tally.note("mask-missing", name)
        return False
    if isinstance(segmentation, Mapping):
        problem = rle_problem(segmentation, size)
        if problem:
            tally.note(problem, f"{name}: size {segmentation.get('size')}, image {size}")
            return False
        annotation["segmentation"] = segmentation = as_rle(segmentation, size)
        if mask_util.area(segmentation) == 0:
            tally.note("mask-no-pixel", name)
        return True
    polygons, problems = clean_polygons(segmentation, size)
    for problem in problems:
        tally.note(problem, f"{name}: {str(segmentation)[:80]}" if problem == "mask-far" else name)
    if {"mask-far", "mask-nan", "mask-type"} & set(problems):
        return False
    if polygons:
        annotation["segmentation"] = polygons
        if _covers_no_pixel(polygons, size):
            tally.note("mask-no-pixel", name)
    elif needed:
        tally.note("mask-unusable", name)
    return bool(polygons)


def _covers_no_pixel(polygons: list[list[float]], size: tuple[int, int]) -> bool:
    """Tell whether a mask covers no pixel; only masks of thin polygons are drawn for this."""
    thin = all(min(max(p[i::2]) - min(p[i::2]) for i in (0, 1)) < THIN for p in polygons)
    return thin and mask_util.area(as_rle(polygons, size)) == 0


def _clean_box(annotation: dict, name: str, image: dict, tally: Tally) -> bool:
    """Check the box, clip it, or take it from the mask; return whether it is usable."""
    box, width, height = annotation.get("bbox"), image["width"], image["height"]
    if not box or _is_no_box(box):
        bounds = mask_bounds(annotation.get("segmentation"), (height, width))
        if bounds is not None:
            tally.note("box-missing", f"{name}: bbox {str(box)[:80]}" if box else name)
            box = [bounds[0], bounds[1], bounds[2] - bounds[0], bounds[3] - bounds[1]]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        tally.note("box-type", f"{name}: bbox {str(box)[:80]}")
        return False
    x, y, w, h = box
    problem = None
    if not all(map(is_finite, (x, y, w, h))):
        problem = "box-not-finite"
    elif w < 0 or h < 0:
        problem = "box-negative"
    elif w == 0 or h == 0:
        problem = "box-empty"
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        problem = "box-outside"
    if problem:
        tally.note(problem, f"{name}: bbox {str(box)[:80]} in {width} x {height} pixels")
        return False
    annotation["bbox"] = list(box)
    annotation["_as_written"] = (x, y, w, h, width, height)
    if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        tally.note("box-clipped", f"{name}: bbox {box} in {width} x {height} pixels")
        x0, y0 = max(x, 0.0), max(y, 0.0)
        annotation["bbox"] = [x0, y0, min(x + w, width) - x0, min(y + h, height) - y0]
    return True


def _is_no_box(box: Any) -> bool:
    """Tell whether a box is four numbers, but has no width or height, or is not finite."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    return numbers and not (all(map(is_finite, box)) and min(box[2:]) > 0)


def _area(annotation: Mapping, image: Mapping) -> float:
    segmentation, size = annotation.get("segmentation"), (image["height"], image["width"])
    if mask_bounds(segmentation, size) is None:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, list):
        segmentation = clean_polygons(segmentation, size)[0]
    return float(mask_util.area(as_rle(segmentation, size)))


def _judge(annotations: list[dict], entries: list, categories: dict, tally: Tally) -> None:
    """Note problems that concern all annotations; remove the temporary keys that were kept for this."""
    written = np.array([a.pop("_as_written") for a in annotations], dtype=float).reshape(-1, 6)
    counts = Counter(a["category_id"] for a in annotations)
    parents = [category.get("supercategory") for category in categories.values()]  # any JSON value
    for identity, category in categories.items():
        if annotations and not counts[identity]:
            parent = ", the parent of others" if category["name"] in parents else ""
            tally.note("category-unused", f"{category['name']!r} (id {identity}{parent})")
    if not annotations and not tally.findings().of("error"):
        tally.note("none-left", f"{len(entries)} in the file")
    elif annotations and all(a["iscrowd"] for a in annotations):
        for annotation in annotations:
            tally.note("all-crowd", f"annotation {annotation.get('id')}")
    else:
        learnable = {a["category_id"] for a in annotations if not a["iscrowd"]}
        for identity in counts.keys() - learnable:
            tally.note("category-crowd", f"{categories[identity]['name']!r}, {counts[identity]} annotations")
    for (image, category, *box), times in Counter(
        (a["image_id"], a["category_id"], *a["bbox"]) for a in annotations
    ).items():
        if times > 1:
            tally.note(
                "annotation-same", f"image {image!r}, {categories[category]['name']!r}, bbox {box}: {times} times"
            )
    judge_boxes(annotations, written, tally)


def _judge_areas(annotations: list[dict], images: dict, tally: Tally) -> None:
    """Note areas, of a sample, that are not those of masks or boxes, unless they are few."""
    sample = evenly_spaced(annotations, AREAS)
    wrong = [a for a in sample if not _fits_mask(a, images[a["image_id"]])]
    for annotation in wrong if len(wrong) > FEW * len(sample) else ():
        area = _area(annotation, images[annotation["image_id"]])
        text = f"annotation {annotation.get('id')}: area {annotation['area']:.6g}, that of mask or box is {area:.6g}"
        tally.note("area-other", text)


def _fits_mask(annotation: Mapping, image: Mapping) -> bool:
    """Tell whether an area is about that of its mask's pixels or outline; without a mask, whether its box allows it."""
    segmentation, size = annotation.get("segmentation"), (image["height"], image["width"])
    polygons = clean_polygons(segmentation, size)[0]  # none for run lengths
    outlined = sum(cv2.contourArea(np.array(p, np.float32).reshape(-1, 2)) for p in polygons)  # what COCO itself has
    least = MASK_IN_BOX if mask_bounds(segmentation, size) is None else 1 / FACTOR
    return any(least * area <= annotation["area"] <= FACTOR * area for area in (_area(annotation, image), outlined))
