from pathlib import Path

import cv2
import numpy as np
import pytest

from densesiam_d2.reporting import gallery as gallery_module
from densesiam_d2.reporting.gallery import EXAMPLES, Gallery


def picture(seed, size=(40, 60)):
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def halves(size=(40, 60), left=0, right=1):
    labels = np.full(size, right, np.uint8)
    labels[:, : size[1] // 2] = left
    return labels


def add(gallery, name, labels, certainty, seed=0, shared=None):
    size, num = labels.shape, len(gallery.pixels)
    certainty = np.full(size, certainty, np.float32) if np.isscalar(certainty) else certainty
    gallery.add(Path(name), picture(seed, size), labels, certainty, np.eye(num) if shared is None else shared)


def test_counts_by_hand():
    gallery = Gallery(4)
    add(gallery, "a", halves(), 0.5)  # 1200 pixels of 0 and of 1
    add(gallery, "b", np.zeros((40, 60), np.uint8), 0.5)  # 2400 pixels of 0
    assert gallery.num_images == 2
    assert gallery.pixels.tolist() == [3600, 1200, 0, 0]
    assert gallery.shares.tolist() == [0.75, 0.25, 0, 0]
    assert gallery.images.tolist() == [2, 1, 0, 0]


def test_nearest_by_hand():
    """Of the probabilities on cluster 0, 1/16 is of cluster 1, 3/16 of 2, and 1/4 of 3, which has no pixel."""
    gallery = Gallery(4)
    labels = np.repeat(np.array([[0, 1, 2]], np.uint8), 3, axis=0)
    shared = np.zeros((4, 4))
    shared[0] = [4, 0.5, 1.5, 2]
    for name in "ab":
        add(gallery, name, labels, 0.5, shared=shared)
    assert gallery.nearest(0) == [(2, pytest.approx(3 / 16)), (1, pytest.approx(1 / 16))]


def test_the_most_certain_regions_of_different_images():
    gallery = Gallery(2)
    for i in range(EXAMPLES + 4):
        add(gallery, f"{i}.jpg", halves(), 0.1 + 0.05 * i, seed=i)
    names = [example.image for example in gallery.examples[0]]
    assert names == [f"{i}.jpg" for i in range(4, EXAMPLES + 4)]  # the best last
    # Mean certainty 0.65 times the square root of half an image.
    assert gallery.examples[0][-1].score == pytest.approx(0.65 * np.sqrt(0.5), rel=1e-5)


def test_the_best_region_of_an_image():
    """A large region scores 0.2 * sqrt(0.5) = 0.141, a small one that is certain 0.9 * sqrt(0.1) = 0.285."""
    labels = np.ones((10, 20), np.uint8)
    labels[:, :10] = 0
    labels[:5, 14:18] = 0
    certainty = np.full((10, 20), 0.2, np.float32)
    certainty[:5, 14:18] = 0.9
    ((score, box, mask),) = [gallery_module._best_regions(labels, certainty)[0]]
    assert score == pytest.approx(0.9 * np.sqrt(20 / 200), rel=1e-5)
    assert box == (14, 0, 4, 5) and mask.all()


def test_of_nearly_equal_pictures_only_the_best_stays():
    gallery = Gallery(2)
    for name, certainty in (("first", 0.4), ("better", 0.6), ("worse", 0.5)):
        add(gallery, name, halves(), certainty, seed=3)
    add(gallery, "other", halves(), 0.3, seed=4)
    assert [example.image for example in gallery.examples[0]] == ["other", "better"]


def test_pictures_show_the_region_outlined():
    gallery = Gallery(2)
    image = np.full((100, 100, 3), 200, np.uint8)
    labels = np.zeros((100, 100), np.uint8)
    labels[40:60, 40:60] = 1
    gallery.add(Path("a"), image, labels, np.ones((100, 100), np.float32), np.eye(2))
    (example,) = gallery.examples[1]
    drawn = cv2.imdecode(np.frombuffer(example.jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)
    # 20 pixels, and on each side 0.3 * 20 + 4 = 10 of context: 40 pixels drawn as 160.
    assert drawn.shape == (160, 160, 3)
    red = (drawn[..., 0] > 180) & (drawn[..., 1] < 130)
    ys, xs = np.nonzero(red)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == pytest.approx((40, 119, 40, 119), abs=2)
    assert abs(drawn[80, 80] - 200).max() < 12 and abs(drawn[10, 10] - 190).max() < 12


@pytest.mark.parametrize(("num", "most"), [(2, EXAMPLES), (500, 3), (3000, 1)])
def test_the_number_of_pictures_is_bounded(num, most):
    gallery = Gallery(num)
    for seed in range(12):
        add(gallery, f"{seed}", halves(), 0.5, seed=seed)
    assert [len(examples) for examples in gallery.examples[:2]] == [most, most]


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 3)])
def test_tiny_and_narrow_images(size):
    gallery = Gallery(2)
    add(gallery, "a", np.zeros(size, np.uint8), 0.5)
    assert len(gallery.examples[0]) == 1
