from itertools import permutations

import numpy as np
import pytest

from densesiam_d2.evaluation.confusion import scores
from densesiam_d2.evaluation.matching import MATCHINGS, as_classes, match_clusters, split_scores

# Class 0's pixels are in cluster 2, class 1's in cluster 0, class 2's in cluster 1.
THREE = np.array([[1, 1, 8], [6, 0, 2], [0, 5, 3]])


def matched(matrix, matching="hungarian"):
    return match_clusters(np.array(matrix), matching).tolist()


def test_three_by_three_by_hand():
    # The largest sum of one entry per row and column is 8 + 6 + 5. Each is also the largest of its column.
    assert [matched(THREE, name) for name in MATCHINGS] == [[1, 2, 0]] * 3
    assert as_classes(THREE, np.array([1, 2, 0])).tolist() == [[8, 1, 1, 0], [2, 6, 0, 0], [3, 0, 5, 0]]


def test_greedy_would_be_wrong():
    # Taking the largest entry first gives 9 + 1, the assignment 8 + 7. By majority both clusters are class 0.
    assert matched([[9, 8], [7, 1]]) == [1, 0]
    assert matched([[9, 8], [7, 1]], "majority") == [0, 0]


def test_pixels_and_iou_differ():
    """Class 0 has 100 pixels, class 1 has 10.

    Pixels: 60 + 0 (cluster 0 is class 0) beats 40 + 10. IoU: 60 / (100 + 70 - 60) = 0.545 and 0 / (10 + 40) = 0 against
    40 / (100 + 40 - 40) = 0.4 and 10 / (10 + 70 - 10) = 0.143; the sums are 0.545 and 0.543.
    With 13 pixels of class 1 in cluster 0 the sums are 60 / 113 = 0.531 and 0.4 + 13 / 73 = 0.578; pixels 60 and 53.
    """
    assert matched([[60, 40], [10, 0]]) == matched([[60, 40], [10, 0]], "hungarian_iou") == [0, 1]
    assert matched([[60, 40], [13, 0]]) == [0, 1]
    assert matched([[60, 40], [13, 0]], "hungarian_iou") == [1, 0]


def test_more_clusters_than_classes():
    # One-to-one: 6 (cluster 3) + 5 (cluster 1). Majority: most pixels of clusters 0, 2 and 3 are class 0.
    matrix = np.array([[1, 0, 4, 6], [0, 5, 2, 3]])
    assert matched(matrix) == [-1, 1, -1, 0]
    assert as_classes(matrix, np.array([-1, 1, -1, 0])).tolist() == [[6, 0, 5], [3, 5, 2]]
    assert matched(matrix, "majority") == [0, 1, 0, 0]
    assert as_classes(matrix, np.array([0, 1, 0, 0])).tolist() == [[11, 0, 0], [5, 5, 0]]
    # IoU of class 0 is 11 / 16, of class 1 5 / 10; 16 of 21 pixels are right.
    result = scores(as_classes(matrix, np.array([0, 1, 0, 0])))
    assert result["IoU"] == pytest.approx([1100 / 16, 50])
    assert result["pACC"] == pytest.approx(1600 / 21)


def test_fewer_clusters_than_classes():
    # One-to-one: 7 + 5. By majority too; class 1 has no cluster, and its 2 pixels are errors of the others.
    matrix = np.array([[0, 7], [1, 1], [5, 0]])
    for name in MATCHINGS:
        assert matched(matrix, name) == [2, 0]
    assert as_classes(matrix, np.array([2, 0])).tolist() == [[7, 0, 0, 0], [1, 0, 1, 0], [0, 0, 5, 0]]
    assert scores(as_classes(matrix, np.array([2, 0])))["IoU"] == pytest.approx([700 / 8, 0, 500 / 6])


def test_clusters_without_pixels_and_absent_classes():
    # Cluster 1 is empty and class 1 absent: one-to-one gives them to each other; by majority cluster 1 has no class.
    matrix = np.array([[4, 0], [0, 0]])
    assert matched(matrix) == matched(matrix, "hungarian_iou") == [0, 1]
    assert matched(matrix, "majority") == [0, -1]
    for classes in ([0, 1], [0, -1]):  # an absent class that is not predicted has no IoU
        iou = scores(as_classes(matrix, np.array(classes)))["IoU"]
        assert iou[0] == 100 and np.isnan(iou[1])
    assert matched(np.zeros((2, 3), int), "majority") == [-1, -1, -1]


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_against_all_assignments(shape):
    """Every one-to-one assignment tried in a loop gives no larger sum."""
    num_classes, num_clusters = shape
    matrix = np.random.default_rng(num_clusters).integers(0, 30, shape)
    iou = np.zeros(shape)
    for k in range(num_classes):
        for p in range(num_clusters):
            iou[k, p] = matrix[k, p] / (matrix[k].sum() + matrix[:, p].sum() - matrix[k, p])
    for name, gain in (("hungarian", matrix), ("hungarian_iou", iou)):
        classes = match_clusters(matrix, name)
        given = [c for c in classes if c >= 0]
        assert len(given) == len(set(given)) == min(shape)
        own = sum(gain[c, p] for p, c in enumerate(classes) if c >= 0)
        small, large = sorted(shape)
        table = gain if num_classes == small else gain.T
        best = max(sum(table[i, j] for i, j in enumerate(order)) for order in permutations(range(large), small))
        assert own == pytest.approx(best)


def test_split_by_hand():
    """Things are class 0, stuff is classes 1 and 2.

    In class order the matrix is [[8, 1, 1], [2, 6, 0], [3, 0, 5]]. Full: IoU_0 = 8/15, IoU_1 = 6/9, IoU_2 = 5/9.
    Block: things [[8]] -> 1; stuff [[6, 0], [0, 5]] -> 1.
    Released: row c moves to its cluster: [[6, 0, 2], [0, 5, 3], [1, 1, 8]]. Its first row is class 1, so "things" is
    [[6]] -> 1, and "stuff" is [[5, 3], [1, 8]] -> (5/9 + 8/12) / 2 = 11/18.
    """
    result = split_scores(THREE, match_clusters(THREE, "hungarian"), {"th": [0], "st": [1, 2]})
    assert result == pytest.approx(
        {
            "mIoU_th_full": 100 * 8 / 15,
            "mIoU_st_full": 100 * 11 / 18,
            "mIoU_th_block": 100,
            "mIoU_st_block": 100,
            "mIoU_th_released": 100,
            "mIoU_st_released": 100 * 11 / 18,
        }
    )


def test_released_reading_against_a_literal_version():
    """The rule as written down in the module: move each row, cut the blocks, mean of tp / (tp + fp + fn)."""
    rng = np.random.default_rng(3)
    matrix = rng.integers(0, 50, (27, 27)) + 400 * np.eye(27, dtype=int)[rng.permutation(27)]
    classes = match_clusters(matrix, "hungarian")
    moved = np.zeros((27, 27))
    for cluster in range(27):
        moved[cluster] = matrix[classes[cluster]]
    result = split_scores(matrix, classes, {"th": list(range(12)), "st": list(range(12, 27))})
    for name, block in {"th": moved[:12, :12], "st": moved[12:, 12:]}.items():
        iou = [block[i, i] / (block[i].sum() + block[:, i].sum() - block[i, i]) for i in range(len(block))]
        assert result[f"mIoU_{name}_released"] == pytest.approx(100 * np.mean(iou))
        assert result[f"mIoU_{name}_block"] != pytest.approx(result[f"mIoU_{name}_released"])


def test_split_of_more_clusters_than_classes():
    """Cluster 3 has one pixel of each class; one-to-one it has no class, by majority (a tie) class 0.

    One-to-one: rows [8, 1, 1 | 1], [2, 6, 0 | 1], [3, 0, 5 | 1]: IoUs 8/16, 6/10, 5/10; the blocks are as before.
    Majority: [9, 1, 1], [3, 6, 0], [4, 0, 5]: IoUs 9/18, 6/10, 5/10.
    """
    matrix, groups = np.concatenate([THREE, np.ones((3, 1), int)], axis=1), {"th": [0], "st": [1, 2]}
    for name in ("hungarian", "majority"):
        result = split_scores(matrix, match_clusters(matrix, name), groups)
        expected = {"mIoU_th_full": 50, "mIoU_st_full": 55, "mIoU_th_block": 100, "mIoU_st_block": 100}
        assert result == pytest.approx(expected), name  # no released reading


def test_no_released_reading_if_a_class_has_two_clusters():
    matrix = np.array([[5, 5, 0], [0, 1, 1], [0, 0, 4]])
    classes = match_clusters(matrix, "majority")
    assert classes.tolist() == [0, 0, 2]
    assert not [name for name in split_scores(matrix, classes, {"th": [0], "st": [1, 2]}) if "released" in name]
