"""Colours changed on the device: each operation within one grey level of the worker's."""

import cv2
import numpy as np
import pytest
import torch

from densesiam_d2.data import color_augmentation as color
from densesiam_d2.layers import COLOR_OPERATIONS, apply_color_steps
from tests.data.photos import smooth_image

NUMBERS = {operation.__name__: number for number, operation in enumerate(COLOR_OPERATIONS)}

AMOUNTS = {  # what INPUT.SSL can draw, with both ends
    color.adjust_brightness: [0.0, 0.6, 0.93, 1.4, 2.0],
    color.shift_brightness: [-0.5, -0.05, 0.0, 0.13, 0.4],
    color.adjust_contrast: [0.0, 0.55, 0.9, 1.4, 2.0],
    color.adjust_saturation: [0.0, 0.6, 0.93, 1.4, 2.0],
    color.adjust_hue: [-0.5, -0.1, -0.013, 0.07, 0.5],
    color.to_grayscale: [0.0],
    color.gaussian_blur: [1e-9, 0.1, 0.45, 1.0, 2.0, 3.7],
    color.solarize: [128.0, 1.0],
}


@pytest.fixture(autouse=True)
def worker_settings():
    """OpenCV as in TwoViewDatasetMapper."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    yield
    cv2.ipp.setUseIPP(before)


def many_colors():
    """Return an image of 52 x 52 x 52 colours from the whole cube, in an order without structure, and one of greys."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    return np.random.default_rng(0).permutation(cube).reshape(52, -1, 3)


def as_batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def worker(operation, image, amount):
    amounts = [] if operation is color.to_grayscale else [amount]
    return operation(image.copy(), *amounts)


def difference(ours, images):
    return np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(images))


@pytest.mark.parametrize("operation", AMOUNTS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("kind", ["photo", "noise", "all colours", "tiny"])
def test_each_operation_is_within_a_grey_level_of_the_workers(operation, kind):
    rng = np.random.default_rng(0)
    image = {
        "photo": lambda: smooth_image(96, 80),
        "noise": lambda: rng.integers(0, 256, (40, 56, 3), dtype=np.uint8),
        "all colours": many_colors,
        "tiny": lambda: rng.integers(0, 256, (3, 2, 3), dtype=np.uint8),  # smaller than a kernel of the blur
    }[kind]()
    amounts = AMOUNTS[operation]
    steps = torch.tensor([[[NUMBERS[operation.__name__], amount]] for amount in amounts], dtype=torch.float64)
    ours = apply_color_steps(as_batch([image] * len(amounts)), steps)
    assert ours.dtype == torch.uint8
    delta = difference(ours, [worker(operation, image, amount) for amount in amounts])
    assert delta.max() <= 1, delta.reshape(len(amounts), -1).max(axis=1)
    assert delta.mean() < 0.25  # OpenCV rounds the last pixels of a row in another way than the others
    unchanged = difference(ours, [image] * len(amounts)).reshape(len(amounts), -1).max(axis=1) == 0
    assert not unchanged.all(), "the operation did nothing"


def test_every_operation_of_the_worker_has_one_here():
    assert {operation.__name__ for operation in AMOUNTS} == NUMBERS.keys()


def test_steps_are_clipped_in_between_and_images_have_their_own_order():
    """By hand: 200 doubled is 255 after clipping, and a quarter of it 64; the other way round 50, then 100."""
    images = torch.full((3, 3, 2, 2), 200, dtype=torch.uint8)
    double, quarter, none = (0.0, 2.0), (0.0, 0.25), (-1.0, 0.0)
    steps = torch.tensor([[double, quarter], [quarter, double], [none, none]], dtype=torch.float64)
    assert apply_color_steps(images, steps)[:, 0, 0, 0].tolist() == [64, 100, 200]
    assert (images == 200).all()


def test_mixed_precision_and_memory_order_do_not_matter():
    images = as_batch([smooth_image(40, 40, seed=i) for i in range(3)])  # channels-last
    steps = torch.tensor([[[6.0, 1.5], [3, 1.3]], [[4, 0.1], [-1, 0]], [[2, 0.7], [7, 128]]], dtype=torch.float64)
    expected = apply_color_steps(images.contiguous(), steps)
    with torch.autocast("cpu", torch.bfloat16):
        changed = apply_color_steps(images, steps)
    assert torch.equal(changed, expected)
    assert changed.stride() == images.stride()
