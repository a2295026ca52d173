import numpy as np
import pytest
import torch

from densesiam_d2.probe.ridge import LAMBDAS, Moments, fit_ridge


def cells(seed=0, count=200):
    """Features of unlike scale and offset, with a channel that never changes, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6)) * [1, 30, 0.01, 2, 1, 0] + [0, 100, 5, -3, 0, 7]
    labels = (features[:, 0] + rng.normal(size=count) > 0).astype(int) + (features[:, 1] > 130)
    return features, labels


def moments_of(features, labels, num_classes, center=3.0):
    moments = Moments(torch.full((features.shape[1],), center), num_classes=num_classes)
    moments.add(torch.from_numpy(features), torch.from_numpy(labels))
    return moments


def direct(features, labels, num_classes, penalty):
    """Least squares on the standardised features, with rows sqrt(penalty) below them and an intercept of its own."""
    std = features.std(axis=0)
    z = (features - features.mean(axis=0)) / np.where(std > 0, std, np.inf)
    count, channels = z.shape
    above = np.hstack([z, np.ones((count, 1))])
    below = np.hstack([np.sqrt(penalty) * np.eye(channels), np.zeros((channels, 1))])
    target = np.vstack([np.eye(num_classes)[labels], np.zeros((channels, num_classes))])
    solution = np.linalg.lstsq(np.vstack([above, below]), target, rcond=None)[0]
    return above @ solution


@pytest.mark.parametrize("penalty", LAMBDAS)
def test_ridge_equals_least_squares_on_the_augmented_system(penalty):
    features, labels = cells()
    classifier = fit_ridge(moments_of(features, labels, 4), penalty)  # class 3 has no cell
    expected = direct(features, labels, 4, penalty)
    np.testing.assert_allclose(features @ classifier.weight.numpy() + classifier.bias.numpy(), expected, atol=1e-9)


def test_ridge_by_hand():
    # One channel, -1 and 1 (mean 0, deviation 1), one cell of each class: Z^T Z = 2, Z^T Y = (-1, 1), mean of Y = 1/2.
    classifier = fit_ridge(moments_of(np.array([[-1.0], [1.0]]), np.array([0, 1]), 2), 2.0)
    np.testing.assert_allclose(classifier.weight, [[-0.25, 0.25]])
    np.testing.assert_allclose(classifier.bias, [0.5, 0.5])


def test_parts_add_up():
    features, labels = cells()
    whole = moments_of(features, labels, 3)
    parts = moments_of(features[:70], labels[:70], 3) + moments_of(features[70:], labels[70:], 3)
    np.testing.assert_allclose(parts.gram, whole.gram)
    np.testing.assert_allclose(fit_ridge(parts, 1.0).weight, fit_ridge(whole, 1.0).weight)


def test_mean_and_scale():
    features, labels = cells()
    mean, scale = moments_of(features, labels, 3).mean_and_scale()
    np.testing.assert_allclose(mean, features.mean(axis=0))
    np.testing.assert_allclose(scale[:5], 1 / features[:, :5].std(axis=0))
    assert scale[5] == 0


def test_cells_of_a_collapsed_network():
    """256 channels of 8 dimensions that differ in the fourth digit, and the square of a float64 has 16."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=256)
    features = common * (1 + 1e-4 * rng.normal(size=(20_000, 8)) @ rng.normal(size=(8, 256)))
    labels = (features[:, 0] > common[0]).astype(int)
    moments = Moments(torch.from_numpy(features[0]), num_classes=2)
    moments.add(torch.from_numpy(features), torch.from_numpy(labels))
    classifier = fit_ridge(moments, LAMBDAS[0])
    predicted = (features @ classifier.weight.numpy() + classifier.bias.numpy()).argmax(axis=1)
    assert (predicted == labels).mean() > 0.95
    with pytest.raises(RuntimeError, match="not positive-definite"):
        fit_ridge(moments_of(features, labels, 2, center=0.0), LAMBDAS[0])


def test_no_cell_has_a_clear_error():
    with pytest.raises(ValueError, match="no cell of the training images has a label"):
        fit_ridge(Moments(torch.zeros(2), num_classes=2), 1.0)
