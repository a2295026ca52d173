"""The linear head against gradient descent that is written out, on features enlarged before the head."""

import numpy as np
import pytest

from densesiam_d2.probe.linear import batches, crops, probe_linear
from densesiam_d2.probe.passes import augmented, resize_labels, squared
from tests.probe.colours import CLASSES, Colours, enlarge, images, mean_iou

SEED, EPOCHS = 3, 5


def large_features(image):
    """Return (10000, 7): features of a 20 x 20 image at 100 x 100 pixels, and a 1 for the bias."""
    x = enlarge(Colours()(image).numpy().astype(np.float64), 100, 100)
    return np.concatenate([x, np.ones((1, 100, 100))]).reshape(7, -1).T


def direct_weight(train):
    """Return the (7, 3) weight and bias after SGD with momentum; the decay of the rate is after 4 of 5 epochs."""
    weight, velocity = np.zeros((7, 3)), np.zeros((7, 3))
    for epoch in range(EPOCHS):
        for batch in batches(len(train), SEED, epoch):
            pairs = [augmented(*train[i], crops(20), [SEED, epoch, i]) for i in batch]
            x = np.concatenate([large_features(image) for image, _ in pairs])
            labels = np.concatenate([resize_labels(truth, 100).ravel() for _, truth in pairs])
            x, labels = x[labels != 255], labels[labels != 255]
            exponentials = np.exp(x @ weight)
            error = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(3)[labels]
            velocity = 0.9 * velocity + x.T @ error / len(x) + 1e-4 * weight
            weight = weight - (0.1 if epoch < 4 else 0.01) * velocity
    return weight


def test_against_gradient_descent_that_is_written_out():
    train, test = images(30, seed=0), images(4, seed=1)  # 20 steps an epoch, of one and two images
    result = probe_linear(Colours(), train, test, CLASSES, epochs=EPOCHS, seed=SEED)
    assert result["steps"] == 100
    weight = direct_weight(train)
    predicted = [(large_features(squared(i, 20)) @ weight).argmax(axis=1).reshape(100, 100) for i, _ in test]
    truth = [resize_labels(labels, 100) for _, labels in test]
    assert result["mIoU"] == pytest.approx(mean_iou(truth, predicted), abs=0.02)  # float32 moves some pixels
    assert result["mIoU"] > 40  # guessing gives 20
    assert list(result["IoU"]) == CLASSES


def test_the_number_of_images_in_a_step():
    sizes = {count: [len(batch) for batch in batches(count, 0, 0)] for count in (10, 100, 1500)}
    assert sizes == {10: [1] * 10, 100: [5] * 20, 1500: [60] * 25}
    assert sorted(np.concatenate(batches(100, 0, 0))) == list(range(100))
    assert batches(10, 0, 0) == batches(10, 0, 0) != batches(10, 0, 1)


def test_image_and_labels_are_cropped_together():
    labels = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 20, axis=0)  # a ramp from left to right
    image, truth = augmented(np.repeat(labels[..., None], 3, axis=2), labels, crops(20), [0, 0, 0])
    assert image.shape == (20, 20, 3) and truth.shape == (20, 20)
    assert not np.array_equal(truth, labels)
    assert np.abs(image[..., 0].astype(int) - truth).max() <= 10
    again = augmented(np.repeat(labels[..., None], 3, axis=2), labels, crops(20), [0, 0, 0])
    assert np.array_equal(image, again[0]) and np.array_equal(truth, again[1])


def test_a_head_that_diverges_is_named():
    class Huge(Colours):
        def __call__(self, image):
            return super().__call__(image) * 1e30

    with pytest.raises(ValueError, match="the linear head diverged"):
        probe_linear(Huge(), images(3, seed=0), images(1, seed=1), CLASSES, epochs=2, seed=0)
