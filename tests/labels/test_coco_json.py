"""Oddities of COCO files, each drawn into a file that is otherwise sound."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest

from densesiam_d2.labels.coco_json import read_coco
from densesiam_d2.labels.coco_kinds import COCO_KINDS
from tests.data_trees import real_data
from tests.labels.coco_files import HEIGHT, WIDTH, coco, rectangle, write


def look(content, tmp_path, **options):
    """Return the cleaned content and level and count of each kind that was found."""
    cleaned, findings = read_coco(write(content, tmp_path, images=False), **options)
    return cleaned, {finding.kind: (finding.level, finding.count) for finding in findings}


def encode(box) -> dict:
    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def along_rows(box) -> dict:
    """Return run lengths that were wrongly counted row by row."""
    x, y, w, h = box
    runs = [y * WIDTH + x, *[w, WIDTH - w] * h]
    return {"size": [HEIGHT, WIDTH], "counts": [*runs[:-1], HEIGHT * WIDTH - sum(runs[:-1])]}


def test_a_sound_file_comes_back_as_it_is(tmp_path):
    content = coco()
    cleaned, found = look(content, tmp_path)
    assert found == {}
    assert cleaned == content


def test_real_files_are_sound():
    for name in ("nuclei/instances_train.json", "nuclei/instances_val.json", "coco128/instances.json"):
        folder, _, file = name.partition("/")
        path = real_data(folder) / file
        content = json.loads(path.read_text())
        cleaned, findings = read_coco(path)
        assert [f.kind for f in findings if f.kind != "category-unused"] == []
        assert len(cleaned["annotations"]) == len(content["annotations"])


def set_all(key, value):
    def change(content):
        for annotation in content["annotations"]:
            annotation[key] = value

    return change


def set_one(key, value, number=3):
    def change(content):
        content["annotations"][number][key] = value

    return change


def set_image(key, value):
    def change(content):
        content["images"][1][key] = value

    return change


def drop(key, part="annotations"):
    def change(content):
        for entry in content[part]:
            del entry[key]

    return change


NAN, HUGE = math.nan, 10**400

# What is done to a file, and level and count of what must be found.
ODDITIES = {
    "no categories": (lambda c: c.pop("categories"), {"json": ("error", 1)}),
    "no annotations key": (lambda c: c.pop("annotations"), {"no-annotations": ("error", 1)}),
    "size infinite": (set_image("width", math.inf), {"image-size": ("error", 1)}),
    "mixed ids": (
        lambda c: (c["images"][1].update(id="2"), [a.update(image_id="2") for a in c["annotations"][2:4]]),
        {"image-id-mixed": ("error", 1)},
    ),
    "image id of 64 bits without a sign": (
        lambda c: (c["images"][1].update(id=2**63), [a.update(image_id=2**63) for a in c["annotations"][2:4]]),
        {"image-id-large": ("error", 1)},
    ),
    "RLE without a pixel": (
        set_one("segmentation", {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
        {"mask-no-pixel": ("warning", 1), "box-mask": ("warning", 1), "area-other": ("warning", 1)},
    ),
    "polygon between pixels": (
        set_one("segmentation", [rectangle(60.1, 30.1, 0.2, 0.2)]),
        {"mask-no-pixel": ("warning", 1), "box-mask": ("warning", 1), "area-other": ("warning", 1)},
    ),
    "image without name": (set_image("file_name", None), {"image-entry": ("error", 1)}),
    "size as string": (set_image("width", "96"), {"image-size": ("error", 1)}),
    "size missing": (drop("height", "images"), {"image-size": ("error", 3)}),
    "size 0": (set_image("height", 0), {"image-size": ("error", 1)}),
    "image id twice": (set_image("id", 1), {"image-id-twice": ("error", 1), "image-unknown": ("repaired", 2)}),
    "image id as string": (lambda c: [i.update(id=str(i["id"])) for i in c["images"]], {"image-id-type": ("error", 6)}),
    "file_name twice": (set_image("file_name", "p1.png"), {"image-name-twice": ("warning", 1)}),
    "file_name twice, once with a dot": (set_image("file_name", "./p1.png"), {"image-name-twice": ("warning", 1)}),
    "image_id as string": (set_all("image_id", "1"), {"image-id-type": ("error", 6)}),
    "image_id unknown": (set_one("image_id", 99), {"image-unknown": ("repaired", 1)}),
    "category id as string": (
        lambda c: [i.update(id=str(i["id"])) for i in c["categories"]],
        {"category-entry": ("error", 2)},
    ),
    "category_id as string": (set_one("category_id", "2"), {"category-id-type": ("error", 1)}),
    "category_id unknown": (set_one("category_id", 7), {"category-unknown": ("error", 1)}),
    "category name twice": (lambda c: c["categories"][1].update(name="red"), {"category-twice": ("error", 1)}),
    "category name with a line break": (
        lambda c: c["categories"][1].update(name="blue\nred"),
        {"category-name": ("repaired", 1)},
    ),
    "category name with half a surrogate pair": (
        lambda c: c["categories"][1].update(name="blue\ud83d"),
        {"category-name": ("repaired", 1)},
    ),
    "category name in Greek, with a space that does not break": (
        lambda c: c["categories"][1].update(name="μπλε\u00a0μπλε"),
        {},
    ),
    "supercategory a list": (lambda c: c["categories"][1].update(supercategory=["colour"]), {}),
    "category unused": (
        lambda c: c["categories"].append({"id": 0, "name": "things"}),
        {"category-unused": ("warning", 1)},
    ),
    "annotation ids missing": (drop("id"), {"annotation-id": ("repaired", 6)}),
    "annotation id twice": (set_one("id", 1), {"annotation-id": ("repaired", 1)}),
    "annotation repeated": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        {"annotation-twice": ("repaired", 1)},
    ),
    "another mask with the same id and no box": (
        lambda c: c["annotations"].append({**c["annotations"][0], "bbox": [], "segmentation": [rectangle(1, 2, 3, 4)]}),
        {"annotation-id": ("repaired", 1), "box-missing": ("repaired", 1), "area-other": ("warning", 1)},
    ),
    "annotation repeated with another id": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 99}),
        {"annotation-same": ("warning", 1)},
    ),
    "ids as 1.0": (
        lambda c: [i.update(id=float(i["id"])) for part in ("images", "categories") for i in c[part]],
        {},
    ),
    "bbox missing": (set_one("bbox", None), {"box-missing": ("repaired", 1)}),
    "bbox of three": (set_one("bbox", [1, 2, 3]), {"box-type": ("error", 1)}),
    "bbox of words": (set_one("bbox", ["a", 1, 2, 3]), {"box-type": ("error", 1)}),
    "bbox NaN": (set_one("bbox", [NAN, 0, 1, 1]), {"box-missing": ("repaired", 1)}),
    "bbox negative": (set_one("bbox", [50, 40, -40, -30]), {"box-missing": ("repaired", 1)}),
    "bbox empty": (set_one("bbox", [50, 40, 0, 30]), {"box-missing": ("repaired", 1)}),
    "bbox outside": (set_one("bbox", [5000, 5000, 10, 10]), {"box-outside": ("repaired", 1)}),
    "bbox over the border": (set_one("bbox", [55, 20, 80, 90]), {"box-clipped": ("repaired", 1)}),
    "bbox smaller than its mask": (set_one("bbox", [55, 20, 15, 20]), {"box-mask": ("warning", 1)}),  # IoU 3/14
    "bbox of half its mask": (set_one("bbox", [55, 20, 35, 20]), {}),
    "polygons of an image three times as large": (
        lambda c: [a.update(segmentation=[[3 * v for v in a["segmentation"][0]]]) for a in c["annotations"]],
        {"box-mask": ("warning", 6), "area-other": ("warning", 3)},
    ),
    "RLE along rows": (
        lambda c: c["annotations"][2].update(bbox=[10, 5, 20, 20], area=400, segmentation=along_rows((10, 5, 20, 20))),
        {"box-mask": ("warning", 1)},  # down the columns the mask lies in columns 7 to 36, of all rows: IoU 400/1920
    ),
    "bbox beside its mask": (set_one("bbox", [0, 0, 5, 5]), {"box-mask": ("warning", 1)}),
    "segmentation missing": (lambda c: c["annotations"][3].pop("segmentation"), {"mask-missing": ("error", 1)}),
    "segmentation null": (set_one("segmentation", None), {"mask-missing": ("error", 1)}),
    "segmentation empty": (set_one("segmentation", []), {"mask-missing": ("error", 1)}),
    "segmentation of one empty polygon": (set_one("segmentation", [[]]), {"mask-missing": ("error", 1)}),
    "segmentation a string": (set_one("segmentation", "mask.png"), {"mask-type": ("error", 1)}),
    "coordinate NaN": (set_one("segmentation", [[NAN, 20, 90, 20, 90, 60]]), {"mask-nan": ("error", 1)}),
    "coordinate infinite": (set_one("segmentation", [[math.inf, 20, 90, 20, 90, 60]]), {"mask-nan": ("error", 1)}),
    "coordinate far away": (
        set_one("segmentation", [[10, 20, 1e9, 20, 90, 60]]),  # pycocotools would crash on it
        {"mask-far": ("error", 1)},
    ),
    "whole numbers that no float can hold": (
        lambda c: (
            c["images"].append({**c["images"][0], "id": 9, "file_name": "9.png", "width": HUGE}),
            c["annotations"][0].update(bbox=[HUGE, 0, 1, 1]),
            c["annotations"][1].update(area=HUGE),
            c["annotations"][2].update(segmentation=[[HUGE, 20, 90, 20, 90, 60]]),
        ),
        {
            "image-size": ("error", 1),
            "box-missing": ("repaired", 1),
            "area": ("repaired", 1),
            "mask-nan": ("error", 1),
        },
    ),
    "two points": (
        set_one("segmentation", [[55, 20, 90, 60]]),
        {"polygon-short": ("repaired", 1), "mask-unusable": ("repaired", 1)},
    ),
    "two points beside a polygon": (
        set_one("segmentation", [[55, 20, 90, 60], rectangle(55, 20, 35, 40)]),
        {"polygon-short": ("repaired", 1)},
    ),
    "odd count": (
        set_one("segmentation", [[55, 20, 90, 20, 90, 60, 55]]),
        {"polygon-odd": ("repaired", 1), "mask-unusable": ("repaired", 1)},
    ),
    "flat": (
        set_one("segmentation", [[55, 20, 70, 20, 90, 20]]),
        {"polygon-flat": ("repaired", 1), "mask-unusable": ("repaired", 1)},
    ),
    "numbers without a list": (set_one("segmentation", rectangle(55, 20, 35, 40)), {"polygon-bare": ("repaired", 1)}),
    "points instead of numbers": (
        set_one("segmentation", [[55, 20], [90, 20], [90, 60], [55, 60]]),
        {"polygon-bare": ("repaired", 1)},
    ),
    "RLE": (set_one("segmentation", encode((55, 20, 35, 40))), {}),
    "RLE of runs": (
        set_one("segmentation", {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 9, 9]}),
        {"box-mask": ("warning", 1), "area-other": ("warning", 1)},
    ),
    "RLE of another size": (
        set_one("segmentation", {**encode((55, 20, 35, 40)), "size": [WIDTH, HEIGHT]}),
        {"rle-size": ("error", 1)},
    ),
    "RLE cut": (
        set_one("segmentation", {**encode((55, 20, 35, 40)), "counts": encode((55, 20, 35, 40))["counts"][:-3]}),
        {"rle-damaged": ("error", 1)},
    ),
    "RLE of garbage": (
        set_one("segmentation", {"size": [HEIGHT, WIDTH], "counts": "garbage"}),
        {"rle-damaged": ("error", 1)},
    ),
    "area missing": (drop("area"), {"area": ("repaired", 6)}),
    "area null": (set_all("area", None), {"area": ("repaired", 6)}),
    "area 0": (set_all("area", 0), {"area": ("repaired", 6)}),
    "area 1": (set_all("area", 1), {"area-other": ("warning", 6)}),
    "areas of the bounding box": (set_one("segmentation", [[55, 20, 90, 60, 88, 60]]), {"area-other": ("warning", 1)}),
    "areas as shares of the image": (
        lambda c: [a.update(area=a["area"] / (WIDTH * HEIGHT)) for a in c["annotations"]],
        {"area-other": ("warning", 6)},
    ),
    "areas of masks that were taken out": (
        lambda c: [(a.update(area=40), a.pop("segmentation")) for a in c["annotations"]],
        {"mask-missing": ("error", 6)},
    ),
    "iscrowd missing": (drop("iscrowd"), {"iscrowd": ("repaired", 6)}),
    "iscrowd null": (set_all("iscrowd", None), {"iscrowd": ("repaired", 6)}),
    "ignore": (set_one("ignore", 1), {"ignore": ("repaired", 1)}),
    "ignore not a number, as pandas writes it": (set_one("ignore", math.nan), {}),
    "ignore as the word false": (set_one("ignore", "false"), {}),
    "iscrowd as string": (set_all("iscrowd", "0"), {}),
    "iscrowd as the word false": (set_all("iscrowd", "false"), {}),
    "iscrowd as the word true": (set_all("iscrowd", "True"), {"all-crowd": ("error", 6)}),
    "ignore 0 as string": (set_one("ignore", "0"), {}),
    "a category of crowds": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["category_id"] == 1],
        {"category-crowd": ("warning", 1)},
    ),
    "keypoints of words": (set_one("keypoints", ["1", "2", "2"]), {"keypoints": ("repaired", 1)}),
    "all crowd": (set_all("iscrowd", 1), {"all-crowd": ("error", 6)}),
    "no annotations": (lambda c: c["annotations"].clear(), {"none-left": ("error", 1)}),
    "corners": (
        lambda c: [
            a.update(bbox=[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])
            for a in c["annotations"]
        ],
        {"boxes-xyxy": ("error", 6), "box-clipped": ("repaired", 3)},
    ),
    "shares": (
        lambda c: [a.update(bbox=[0.1, 0.2, 0.4, 0.5]) for a in c["annotations"]],
        {"boxes-relative": ("error", 6)},
    ),
    "shares with rounding": (
        lambda c: [a.update(bbox=[0.0, 0.2, 1.0000001, 0.5]) for a in c["annotations"]],
        {"boxes-relative": ("error", 6)},
    ),
    "one box in shares": (
        set_one("bbox", [0.1, 0.2, 0.4, 0.5]),
        {"box-relative": ("warning", 1), "box-mask": ("warning", 1)},
    ),
}


BOXES = {  # without masks, from which boxes could be taken
    "bbox NaN": (set_one("bbox", [NAN, 0, 1, 1]), {"box-not-finite": ("repaired", 1)}),
    "bbox negative": (set_one("bbox", [50, 40, -40, -30]), {"box-negative": ("repaired", 1)}),
    "bbox empty": (set_one("bbox", [50, 40, 0, 30]), {"box-empty": ("repaired", 1)}),
    "rotated rectangle of CVAT": (set_one("attributes", {"rotation": 45.0}), {"box-rotated": ("warning", 1)}),
    "upright rectangle of CVAT": (set_one("attributes", {"rotation": 0.0}), {}),
}


@pytest.mark.parametrize("name", BOXES)
def test_oddity_of_a_box_is_found(name, tmp_path):
    change, expected = BOXES[name]
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    change(content)
    _, found = look(content, tmp_path, masks=False)
    assert found == expected


@pytest.mark.parametrize("name", ODDITIES)
def test_oddity_is_found(name, tmp_path):
    change, expected = ODDITIES[name]
    content = coco()
    change(content)
    _, found = look(content, tmp_path)
    assert found == expected


def test_every_kind_is_tried():
    tried = {kind for _, expected in (*ODDITIES.values(), *BOXES.values()) for kind in expected}
    assert set(COCO_KINDS) - tried == {"annotation-entry"}  # below


def test_entries_that_are_no_objects(tmp_path):
    content = coco()
    content["annotations"][0] = [1, 2, 3]
    assert look(content, tmp_path)[1] == {"annotation-entry": ("error", 1)}


@pytest.mark.parametrize("text", ["<html>not found</html>", "", "[]", '{"images": {}}', "\xff\xfe", "[" * 100_000])
def test_no_coco_file(text, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(text, encoding="latin-1")
    _, findings = read_coco(path)
    assert {"json"} == {finding.kind for finding in findings}
    with pytest.raises(ValueError, match=r"train\.json: no COCO instances JSON"):
        findings.raise_errors()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 1, "score": 0.5}]', r"no dict of images, annotations and categories, but \[\{'image_id'"),
        (
            '{"images": [], "categories": [], "annotations": [{"segments_info": []}]}',
            r"this is a panoptic file: name the file of instances",
        ),
        ('{"info": {}}', r"no list 'annotations'; the keys are info\)"),
        ('{"images": {}, "categories": [], "annotations": []}', r"'images' is a dict, not a list"),
        ("\x1f\x8b\x08", r"this is gzip: unpack it"),
    ],
)
def test_another_format_is_told(text, message, tmp_path):
    (tmp_path / "train.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_coco(tmp_path / "train.json")[1].raise_errors()


def test_a_list_that_stands_twice_is_told(tmp_path):
    """Python's parser keeps the second list, and the annotations of the first would be lost."""
    content = coco()
    text = json.dumps(content)
    text = text[:-1] + ', "annotations": ' + json.dumps(content["annotations"][:1]) + "}"
    (tmp_path / "twice.json").write_text(text)
    _, findings = read_coco(tmp_path / "twice.json", masks=True)
    assert "the list 'annotations' stands in it more than once: join the lists" in str(findings.of("error")[0])
    content["images"][0]["images"] = content["images"][0]["annotations"] = "a key of an image"
    (tmp_path / "once.json").write_text(json.dumps(content))
    assert not read_coco(tmp_path / "once.json", masks=True)[1].of("error")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.json do not exist"):
        read_coco(tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match=r"the annotations .* are a folder"):
        read_coco(tmp_path)


def test_byte_order_mark(tmp_path):
    path = write(coco(), tmp_path, images=False)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_coco(path)[1] == []


def test_repaired_values(tmp_path):
    content = coco()
    first, second, third = content["annotations"][:3]
    content["categories"][0]["name"], content["categories"][1]["name"] = "cat\nfish", "cat\ud83d"
    del first["area"], first["bbox"]  # from the mask
    second["bbox"] = [55, 20, 80, 90]  # clipped to 96 x 64
    third.update(area=None, segmentation=encode((10, 10, 40, 30)))
    cleaned = look(content, tmp_path)[0]
    annotations = cleaned["annotations"]
    assert [category["name"] for category in cleaned["categories"]] == [r"cat\nfish", r"cat\ud83d"]
    assert annotations[0]["bbox"] == [10, 10, 40, 30] and annotations[0]["area"] == 40 * 30
    assert annotations[1]["bbox"] == [55, 20, 96 - 55, 64 - 20]
    assert annotations[2]["area"] == 40 * 30


def test_ids_count_from_1(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    cleaned, found = look(content, tmp_path)
    assert found == {} and [a["id"] for a in cleaned["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_masks_that_are_not_needed_are_not_looked_at(tmp_path):
    content = coco()
    content["annotations"][0]["segmentation"] = [[NAN, 1, 2, 3, 4, 5]]
    del content["annotations"][1]["segmentation"]
    cleaned, found = look(content, tmp_path, masks=False)
    assert found == {} and len(cleaned["annotations"]) == 6
    assert not any("segmentation" in a for a in cleaned["annotations"])


def test_masks_as_they_come(tmp_path):
    content = coco()
    del content["annotations"][1]["segmentation"]
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    annotations = look(content, tmp_path, masks=None)[0]["annotations"]
    assert ["segmentation" in a for a in annotations] == [True, False, False, True, True, True]


def test_corners_without_masks(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]  # the blue one ends at x 90, y 60: as sizes it would leave the image
    # The red one, 10 10 50 40, fits in both readings: 3 of the 6 are told.
    assert look(content, tmp_path, masks=False)[1]["boxes-xyxy"] == ("error", 3)


def test_one_box_over_the_border_is_no_corners(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation["bbox"] = [5, 5, 40, 40]  # large and near the origin: it fits as corners too
    content["annotations"][0]["bbox"] = [5, 5, 95, 40]
    assert look(content, tmp_path, masks=False)[1] == {"box-clipped": ("repaired", 1)}


@pytest.mark.parametrize(("area", "told"), [(40, 0), (1, 6), (5000, 6)])  # boxes of 1200 and 1400 pixels
def test_areas_without_masks(area, told, tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation["area"] = area
    assert look(content, tmp_path, masks=False)[1] == ({"area-other": ("warning", told)} if told else {})


def test_few_areas_that_differ(tmp_path):
    content = coco(51)
    content["annotations"][7]["area"] = 1
    assert look(content, tmp_path)[1] == {}  # 1 of 102
    content["annotations"][60]["area"] = 1
    assert look(content, tmp_path)[1] == {"area-other": ("warning", 2)}


def test_masks_tell_corners_where_only_boxes_are_trained(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    assert look(content, tmp_path, masks=False)[1]["boxes-xyxy"] == ("error", 6)


def test_boxes_at_the_border_are_no_corners(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation["bbox"] = [0, 0, 96.7, 64.2]  # rounding, as in COCO itself
    assert look(content, tmp_path, masks=False)[1] == {}


def test_message(tmp_path):
    content = coco()
    content["annotations"][4]["category_id"] = "1"
    _, findings = read_coco(write(content, tmp_path, images=False))
    with pytest.raises(ValueError) as error:
        findings.raise_errors()
    assert str(error.value) == (
        f"the labels cannot be used: {tmp_path}/train.json: annotations whose category_id is a category's id of "
        "another type: 1; use one type (annotation 5 has category_id '1', the category has id 1) [category-id-type]"
    )


def test_accepted_kinds(tmp_path):
    content = coco()
    del content["annotations"][3]["segmentation"]
    content["categories"].append({"id": 9, "name": "never"})
    cleaned, findings = read_coco(write(content, tmp_path, images=False))
    assert len(cleaned["annotations"]) == 5
    accepted = findings.accept(["mask-missing", "category-unused"])
    assert [(f.level, f.kind) for f in accepted] == [("warning", "mask-missing")]


def test_a_subset_of_images_with_ids_of_two_types(tmp_path):
    content = coco()
    first = content["images"][0]["id"]
    content["images"][0]["id"] = "a"
    for annotation in content["annotations"]:
        annotation["image_id"] = "a" if annotation["image_id"] == first else annotation["image_id"]
    cleaned, found = look(content, tmp_path, subset=(2, 0))
    assert len(cleaned["images"]) == 2 and "image-id-mixed" in found


def test_subsets_are_nested_and_annotated(tmp_path):
    content = coco(20)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 5]
    path = write(content, tmp_path, images=False)
    ids = {n: {i["id"] for i in read_coco(path, subset=(n, 7))[0]["images"]} for n in (1, 4, 15)}
    assert [len(v) for v in ids.values()] == [1, 4, 15]
    assert ids[1] < ids[4] < ids[15] == set(range(6, 21))
    others = [{i["id"] for i in read_coco(path, subset=(4, seed))[0]["images"]} for seed in range(5)]
    assert len(set(map(frozenset, others))) > 1
    cleaned = read_coco(path, subset=(4, 7))[0]
    assert [a["id"] for a in cleaned["annotations"]] == list(range(1, 9))
    with pytest.raises(ValueError, match="subset=16: there are 15 annotated images"):
        read_coco(path, subset=(16, 7))


def test_a_subset_is_the_same_with_and_without_masks(tmp_path):
    """Image 3 has boxes, but no polygon of three corners: it is drawn, or not, for every model alike."""
    content = coco(40)
    for annotation in content["annotations"]:
        if annotation["image_id"] == 3:
            annotation["segmentation"] = [[10, 10, 20, 20]]
    path = write(content, tmp_path, images=False)
    draws = [
        {i["id"] for i in read_coco(path, masks=masks, subset=(30, 0))[0]["images"]} for masks in (True, None, False)
    ]
    assert draws[0] == draws[1] == draws[2] and len(draws[0]) == 30
    kept = read_coco(path, masks=True, subset=(40, 0))[0]
    assert len(kept["images"]) == 40 and all(a["image_id"] != 3 for a in kept["annotations"])


def test_a_subset_is_drawn_also_where_errors_may_be_accepted(tmp_path):
    content = coco(40)
    del content["annotations"][7]["segmentation"]
    path = write(content, tmp_path, images=False)
    cleaned, findings = read_coco(path, subset=(10, 0))
    assert findings.of("error") and len(cleaned["images"]) == 10
    assert len(read_coco(path, subset=(99, 0))[0]["images"]) == 40  # there is an error to be told of first


def test_neither_a_usable_mask_nor_a_box(tmp_path):
    """Such an annotation is left out whether masks are needed or only kept where they are."""
    content = coco()
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[55, 20, 90, 60]]
    for masks in (True, None):
        cleaned, found = look(content, tmp_path, masks=masks)
        assert found == {"polygon-short": ("repaired", 1), "mask-unusable": ("repaired", 1)}
        assert len(cleaned["annotations"]) == 5
