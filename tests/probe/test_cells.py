from collections import Counter

import numpy as np
import pytest

from densesiam_d2.probe.cells import IGNORED, cell_modes


def test_modes_by_hand():
    labels = np.array(
        [
            [0, 0, 1, 255],
            [2, 1, 255, 1],
            [2, 2, 255, 255],
            [1, 1, 255, 0],
        ],
        np.uint8,
    )
    # 0 twice; 1 and ignored twice each, so the class; 1 and 2 twice each, so the lower one; ignored three times.
    assert cell_modes(labels, (4, 4), 2, 3).tolist() == [[0, 1], [1, IGNORED]]


def test_modes_against_a_loop():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 255], (24, 40), p=[0.3, 0.2, 0.1, 0.1, 0.3]).astype(np.uint8)
    modes = cell_modes(labels, (24, 40), 8, 4)
    assert modes.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            counts = Counter(int(v) for v in labels[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].ravel())
            best = min(counts, key=lambda label: (-counts[label], label))  # 255 is the last of equals
            assert modes[i, j] == (IGNORED if best == 255 else best)


def test_labels_of_another_size_are_sampled_at_pixel_centres():
    labels = np.repeat(np.repeat(np.array([[0, 1], [2, 0]], np.uint8), 6, axis=0), 6, axis=1)  # 12 x 12
    assert cell_modes(labels, (8, 8), 4, 3).tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_values_that_are_no_class_are_ignored(dtype):
    assert cell_modes(np.full((4, 4), 9, dtype), (4, 4), 4, 3).tolist() == [[IGNORED]]
