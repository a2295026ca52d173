import numpy as np
import pycocotools.mask as mask_util
import pytest

from densesiam_d2.labels.masks import clean_polygons, mask_bounds, rle_problem


def test_sound_run_lengths_pass_and_cut_ones_do_not():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 300), (300, 7), (480, 640)):
        for density in (0, 0.001, 0.5, 1):
            mask = (rng.random(size) < density).astype(np.uint8)
            rle = mask_util.encode(np.asfortranarray(mask))
            assert rle_problem(rle, size) is None
            assert rle_problem({**rle, "counts": rle["counts"].decode()}, size) is None
            longer = {**rle, "counts": rle["counts"] + b"1"}
            assert rle_problem(longer, size) == "rle-damaged"


def test_large_holes():
    # One pixel in the last corner of a large image: a run of 26 bits.
    mask = np.zeros((8192, 8192), np.uint8, order="F")
    mask[-1, -1] = 1
    assert rle_problem(mask_util.encode(mask), mask.shape) is None


@pytest.mark.parametrize(
    "counts", [None, 5, [], [-1, 7], [1.5, 4.5], [3, "3"], b"", b"\x00\x01", "0123456789" * 30, [2, 3], "ü"]
)
def test_damaged_run_lengths(counts):
    assert rle_problem({"size": [2, 3], "counts": counts}, (2, 3)) == "rle-damaged"


def test_runs_in_a_list():
    assert rle_problem({"size": [2, 3], "counts": [2, 3, 1]}, (2, 3)) is None
    assert rle_problem({"size": [3, 2], "counts": [2, 3, 1]}, (2, 3)) == "rle-size"
    assert rle_problem({"counts": [2, 3, 1]}, (2, 3)) == "rle-size"


def test_polygons():
    triangle = [0, 0, 4, 0, 0, 3]
    bow_tie = [0, 0, 2, 2, 2, 0, 0, 2]  # its signed area is 0, but it encloses two triangles
    assert clean_polygons([triangle, bow_tie], (10, 20)) == ([triangle, bow_tie], [])
    assert clean_polygons([triangle, [0, 0, 4, 4, 8, 8], [1, 1] * 5], (10, 20)) == ([triangle], ["polygon-flat"] * 2)
    assert clean_polygons([[]], (10, 20)) == ([], ["polygon-short"])
    assert clean_polygons([[[0, 0], [4, 0], [0, 3]]], (10, 20)) == ([], ["mask-type"])
    assert clean_polygons([[0, 0, 201, 0, 9, 9]], (10, 20)) == ([], ["mask-far"])
    assert clean_polygons([[0, 0, 10**400, 0, 9, 9]], (10, 20)) == ([], ["mask-nan"])
    assert clean_polygons([["a"] * 6], (10, 20)) == ([], ["mask-type"])


def test_bounds():
    assert mask_bounds([[1, 2, 5, 2, 5, 9], [0, 4, 2, 4, 2, 5]], (20, 20)) == (0, 2, 5, 9)
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[3:7, 4:9] = 1
    assert mask_bounds(mask_util.encode(mask), (20, 30)) == (4, 3, 9, 7)
    assert mask_bounds(mask_util.encode(mask), (30, 20)) is None
    assert mask_bounds(None, (2, 2)) is None
