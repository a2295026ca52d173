"""In-context retrieval by hand, and against loops over cells."""

from collections import Counter

import numpy as np
import pytest
import torch

from densesiam_d2.probe.passes import augmented, resize_labels, squared
from densesiam_d2.probe.retrieval import Memory, crops, probe_retrieval, rarest_cells
from tests.probe.colours import CLASSES, Colours, enlarge, images, mean_iou

SEED = 3


def test_attention_by_hand():
    """The second cell has the cosine 1 - 0.02 ln 3, so a third of the first one's weight: 3/4 and 1/4."""
    memory = Memory(5, num_channels=2, num_classes=2)
    cosine = 1 - 0.02 * np.log(3)
    memory.add(torch.tensor([[2.0, 0.0]]), np.array([[16, 0]]))
    memory.add(torch.tensor([[cosine, (1 - cosine**2) ** 0.5], [-1.0, 0.0]]), np.array([[4, 4], [0, 1]]))
    assert len(memory) == 3
    predicted = memory.predict(torch.tensor([[5.0, 0.0]]))
    np.testing.assert_allclose(predicted, [[3 / 4 + 1 / 4 / 2, 1 / 4 / 2]], rtol=1e-5)


def test_thirty_neighbours():
    """31 equal cells of class 1 and one, less near, of class 0: only 30 count."""
    memory = Memory(32, num_channels=2, num_classes=2)
    memory.add(torch.tensor([[1.0, 0.1]] + [[1.0, 0.0]] * 31), np.array([[1, 0]] + [[0, 1]] * 31))
    np.testing.assert_allclose(memory.predict(torch.tensor([[1.0, 0.0]])), [[0, 1]], atol=1e-6)


def test_rare_classes_come_first():
    """Class 1 is in one of ten cells: its score is u, the others' 9 u, and the lowest is taken.

    The chance that u is below all nine of 9 u is the integral of (1 - x / 9)^9 over [0, 1], 0.9 (1 - (8 / 9)^10).
    """
    counts = np.array([[5, 0]] * 9 + [[0, 5]])
    rare = np.mean([rarest_cells(counts, 1, [0, seed])[0] == 9 for seed in range(4000)])
    assert rare == pytest.approx(0.9 * (1 - (8 / 9) ** 10), abs=0.025)  # three standard deviations


def test_cells_without_labels_are_not_chosen():
    counts = np.array([[0, 0], [1, 0], [0, 0], [2, 3]])
    assert rarest_cells(counts, 4, [0]).tolist() == [1, 3]


def direct_memory(train, share):
    """Return features of length 1 and class shares of the cells, chosen one by one."""
    features, shares = [], []
    for epoch in range(2):
        for index, pair in enumerate(train):
            image, labels = augmented(*pair, crops(20), [SEED, epoch, index])
            x = Colours()(image).numpy().astype(np.float64)
            blocks = [labels[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].ravel().tolist() for i in range(5) for j in range(5)]
            held = [set(block) - {255} for block in blocks]
            number_of_cells = Counter(label for labels in held for label in labels)
            chance = np.random.default_rng([SEED, epoch, index]).random(25)
            score = {n: sum(number_of_cells[c] for c in held[n]) * chance[n] for n in range(25) if held[n]}
            for n in sorted(score, key=score.get)[:share]:
                vector = x[:, n // 5, n % 5]
                features.append(vector / np.linalg.norm(vector))
                known = [label for label in blocks[n] if label != 255]
                shares.append([known.count(c) / len(known) for c in range(3)])
    return np.array(features), np.array(shares)


def direct_prediction(image, features, shares):
    x = Colours()(image).numpy().astype(np.float64)
    predicted = np.zeros((3, 5, 5))
    for i in range(5):
        for j in range(5):
            cosines = features @ x[:, i, j] / np.linalg.norm(x[:, i, j])
            nearest = np.argsort(-cosines)[:30]
            weights = np.exp(cosines[nearest] / 0.02)
            predicted[:, i, j] = weights / weights.sum() @ shares[nearest]
    return enlarge(predicted, 20, 20).argmax(axis=0)


@pytest.mark.parametrize(("memory_cells", "share"), [(100, 8), (10_000, 25)])
def test_against_loops(memory_cells, share):
    train, test = images(6, seed=0), images(4, seed=1)
    result = probe_retrieval(Colours(), train, test, CLASSES, memory_cells=memory_cells, seed=SEED)
    features, shares = direct_memory(train, share)
    assert result["cells"] == len(features) <= memory_cells
    predicted = [direct_prediction(squared(image, 20), features, shares) for image, _ in test]
    truth = [resize_labels(labels, 20) for _, labels in test]
    assert result["mIoU"] == pytest.approx(mean_iou(truth, predicted), abs=0.3)  # float32 moves a pixel or two
    assert result["mIoU"] > 50


def test_errors():
    train, test = images(3, seed=0), images(1, seed=1)
    with pytest.raises(ValueError, match="--memory-cells 5 is too small for 3 images: at least 6"):
        probe_retrieval(Colours(), train, test, CLASSES, memory_cells=5, seed=0)
    nothing = [(image, np.full_like(labels, 255)) for image, labels in train]
    with pytest.raises(ValueError, match="no cell of the training images has a labelled pixel"):
        probe_retrieval(Colours(), nothing, test, CLASSES, memory_cells=50, seed=0)
