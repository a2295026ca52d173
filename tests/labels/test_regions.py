import contextlib
import io
import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from densesiam_d2.labels.coco_json import read_coco
from densesiam_d2.labels.regions import CocoWriter, connected_regions, count_regions, region_polygon

RING = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 2],
        [2, 0, 0, 0, 0, 2],
    ],
    np.uint8,
)


def flood_fill(labels):
    """The connected regions as sets of pixels, by a slow search from each pixel to its four neighbours."""
    left, regions = {(y, x) for y in range(labels.shape[0]) for x in range(labels.shape[1])}, []
    while left:
        first = left.pop()
        region, todo = {first}, [first]
        while todo:
            y, x = todo.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and labels[near] == labels[first]:
                    left.remove(near)
                    region.add(near)
                    todo.append(near)
        regions.append((int(labels[first]), frozenset(region)))
    return regions


def pixels(region):
    ys, xs = np.nonzero(region.mask)
    return frozenset(zip((ys + region.box[1]).tolist(), (xs + region.box[0]).tolist(), strict=True))


def blobs(seed, num=4, size=(40, 56)):
    noise = np.random.default_rng(seed).random((*size, num)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2).argmax(axis=-1).astype(np.uint8)


@pytest.mark.parametrize("seed", [0, 1])
def test_regions_are_those_of_a_flood_fill(seed):
    labels = blobs(seed)
    found = [(region.label, pixels(region)) for region in connected_regions(labels, 4, 1)]
    assert len(found) == len(set(found)) and set(found) == set(flood_fill(labels))
    large = list(connected_regions(labels, 4, 30))
    assert {(r.label, pixels(r)) for r in large} == {(i, p) for i, p in found if len(p) >= 30}
    assert all(region.area == region.mask.sum() for region in large)


@pytest.mark.parametrize(("num", "min_area"), [(4, 1), (4, 30), (3, 30), (6, 1)])
def test_counts_are_those_of_a_flood_fill(num, min_area):
    """Ids from num on, such as an ignore label, do not count."""
    labels = blobs(2)
    found = [i for i, pixels in flood_fill(labels) if len(pixels) >= min_area]
    assert count_regions(labels, num, min_area) == [found.count(i) for i in range(num)]


def test_an_ignore_label_has_no_region():
    labels = np.where(RING == 2, 255, RING).astype(np.uint8)
    assert {region.label for region in connected_regions(labels, 3, 1)} == {0, 1}


def test_a_square_and_a_hole_by_hand():
    square = next(r for r in connected_regions(np.eye(1, 3, 1, dtype=np.uint8), 2, 1) if r.label == 1)
    points = np.reshape(region_polygon(square), (-1, 2)).tolist()
    assert sorted(points) == [[1, 0], [1, 1], [2, 0], [2, 1]]  # pixel 1 of the row spans 1 to 2
    (ring,) = (r for r in connected_regions(RING, 3, 1) if r.label == 1)
    corners = {tuple(p) for p in np.reshape(region_polygon(ring), (-1, 2)).tolist()}
    assert corners == {(1, 1), (5, 1), (5, 4), (1, 4), (2, 2), (4, 2), (4, 3), (2, 3)}


@pytest.mark.parametrize("seed", range(5))
def test_pycocotools_draws_exactly_the_pixels(seed):
    labels = blobs(seed, num=2)  # large regions with holes
    for region in connected_regions(labels, 2, 1):
        drawn = mask_util.decode(mask_util.frPyObjects([region_polygon(region)], *labels.shape))[..., 0]
        assert frozenset(zip(*(a.tolist() for a in np.nonzero(drawn)), strict=True)) == pixels(region)


def test_the_file_is_read_back(tmp_path):
    certainty = np.full(RING.shape, 0.5, np.float32)
    certainty[3:, 5] = 0.9
    with CocoWriter(tmp_path / "a.json", ["sky", "ring", "Straße"], min_area=2) as writer:
        writer.add("town/a.jpg", RING, certainty)
        writer.add("b.jpg", np.zeros((4, 5), np.uint8), np.ones((4, 5), np.float32))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "a.json"))
    found = [(a["image_id"], coco.cats[a["category_id"]]["name"], a["area"]) for a in coco.anns.values()]
    # The 0s are 11 pixels above the ring, 2 in its hole and 4 below it; of the 2s, one pixel alone is too small.
    sky = [(1, "sky", area) for area in (2, 4, 11)]
    assert sorted(found) == sorted([(1, "ring", 10), *sky, (1, "Straße", 2), (2, "sky", 20)])
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert mask_util.toBbox(mask_util.encode(np.asfortranarray(mask))).tolist() == annotation["bbox"]
    scores = {a["score"] for a in coco.anns.values() if coco.cats[a["category_id"]]["name"] == "Straße"}
    assert scores == {0.9}
    _, findings = read_coco(tmp_path / "a.json")
    assert list(findings) == []


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), CocoWriter(tmp_path / "a.json", ["sky"], 1):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_no_region_at_all(tmp_path):
    with CocoWriter(tmp_path / "a.json", ["sky"], min_area=99) as writer:
        writer.add("a.jpg", np.zeros((4, 5), np.uint8), np.ones((4, 5), np.float32))
    assert json.loads((tmp_path / "a.json").read_text())["annotations"] == []
