"""The whole probe against a slow direct version, on features that are computed by hand."""

from collections import Counter

import numpy as np
import pytest

from densesiam_d2.probe.ridge import LAMBDAS
from densesiam_d2.probe.run import held_out_images, probe
from tests.probe.colours import CLASSES, Colours, enlarge, images


def cells_of(image, labels):
    """Return features and labels of the labelled cells, cell by cell."""
    x, features, modes = Colours()(image).numpy().astype(np.float64), [], []
    for i in range(5):
        for j in range(7):
            counts = Counter(labels[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].ravel().tolist())
            mode = min(counts, key=lambda label: (-counts[label], label))
            if mode != 255:
                features.append(x[:, i, j])
                modes.append(mode)
    return np.array(features), np.array(modes)


def score(some, classify):
    """Return mIoU, pACC and IoUs in percent, from sets of pixels."""
    truth, predicted = [], []
    for image, labels in some:
        x = Colours()(image).numpy().astype(np.float64)
        scores = classify(x.reshape(6, -1).T).T.reshape(3, 5, 7)
        truth.append(labels.ravel())
        predicted.append(enlarge(scores, 20, 28).argmax(axis=0).ravel())
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    truth, predicted = truth[truth != 255], predicted[truth != 255]
    ious = [100 * np.sum((truth == c) & (predicted == c)) / np.sum((truth == c) | (predicted == c)) for c in range(3)]
    return np.mean(ious), 100 * np.mean(truth == predicted), ious


def direct_ridge(cells, penalty):
    features, labels = (np.concatenate(part) for part in zip(*cells, strict=True))
    mean, std = features.mean(axis=0), features.std(axis=0)
    z = (features - mean) / std
    above = np.hstack([z, np.ones((len(z), 1))])
    below = np.hstack([np.sqrt(penalty) * np.eye(6), np.zeros((6, 1))])
    target = np.vstack([np.eye(3)[labels], np.zeros((6, 3))])
    solution = np.linalg.lstsq(np.vstack([above, below]), target, rcond=None)[0]
    return lambda x: np.hstack([(x - mean) / std, np.ones((len(x), 1))]) @ solution


def direct_votes(cells, k):
    features, labels = (np.concatenate(part) for part in zip(*cells, strict=True))
    mean, std = features.mean(axis=0), features.std(axis=0)
    memory = (features - mean) / std

    def classify(x):
        shares = []
        for query in (x - mean) / std:
            cosines = memory @ query / np.linalg.norm(memory, axis=1) / np.linalg.norm(query)
            nearest = labels[np.argsort(-cosines)[:k]]
            shares.append([np.mean(nearest == c) for c in range(3)])
        return np.array(shares)

    return classify


def test_against_a_slow_direct_version():
    train, test, seed = images(12, seed=0), images(4, seed=1), 5
    result = probe(Colours(), train, test, CLASSES, ks=[1, 5], knn_cells=10**6, seed=seed)

    held = held_out_images(12, seed)
    assert len(held) == 5
    cells = [cells_of(*pair) for pair in train]
    rest = [c for i, c in enumerate(cells) if i not in held]
    chosen = {p: score([train[i] for i in held], direct_ridge(rest, p))[0] for p in LAMBDAS}
    assert list(result["ridge"]["held_out"].values()) == pytest.approx(list(chosen.values()), abs=1e-6)
    best = max(LAMBDAS, key=lambda p: (round(chosen[p], 6), -p))
    assert result["ridge"]["lambda"] == best
    assert result["cells"] == result["knn_cells"] == sum(len(labels) for _, labels in cells)

    for found, classify, tolerance in (
        (result["ridge"], direct_ridge(cells, best), 1e-6),
        (result["knn"][1], direct_votes(cells, 1), 0.1),  # float32 breaks some ties of votes another way
        (result["knn"][5], direct_votes(cells, 5), 0.1),
    ):
        miou, accuracy, ious = score(test, classify)
        assert found["mIoU"] == pytest.approx(miou, abs=tolerance)
        assert found["pACC"] == pytest.approx(accuracy, abs=tolerance)
        assert list(found["IoU"]) == CLASSES
        assert list(found["IoU"].values()) == pytest.approx(ious, abs=3 * tolerance)


def test_the_sample_of_neighbours_is_bounded_and_drawn_from_the_seed():
    train, test = images(10, seed=0), images(2, seed=1)
    first, again, other = (
        probe(Colours(), train, test, CLASSES, ks=[3], knn_cells=55, seed=seed) for seed in (0, 0, 1)
    )
    assert first["knn_cells"] == 55  # 6 of each image, and some left out again
    assert first["knn"] == again["knn"]
    assert first["knn"] != other["knn"]


def test_held_out_images():
    numbers = {count: len(held_out_images(count, 0)) for count in (2, 3, 10, 50, 60, 367)}
    assert numbers == {2: 1, 3: 1, 10: 5, 50: 5, 60: 6, 367: 37}
    assert held_out_images(50, 0) == held_out_images(50, 0) != held_out_images(50, 1)
    with pytest.raises(ValueError, match="1 image is too few"):
        held_out_images(1, 0)


def test_clear_errors():
    train, test = images(3, seed=0), images(1, seed=1)
    with pytest.raises(ValueError, match="--knn 9: only 6 labelled cells can be neighbours"):
        probe(Colours(), train, test, CLASSES, ks=[9], knn_cells=6, seed=0)
    nothing = [(image, np.full_like(labels, 255)) for image, labels in train]
    with pytest.raises(ValueError, match="no cell of the training images has a label"):
        probe(Colours(), nothing, test, CLASSES, ks=[], knn_cells=6, seed=0)
