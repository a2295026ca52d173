import numpy as np
import pytest

from densesiam_d2.evaluation.confusion import _count_uint8, confusion_matrix, scores

# Three classes, ignore 255. Pairs (target, prediction): (0,0) twice, (0,1), (1,1), (1,2), (2,2), and one ignored.
TARGET = np.array([[0, 0, 0, 1], [1, 2, 255, 255]])
PREDICTION = np.array([[0, 0, 1, 1], [2, 2, 0, 1]])
MATRIX = [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_by_hand(dtype):
    matrix = confusion_matrix(TARGET.astype(dtype), PREDICTION.astype(dtype), 3, 3, 255)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == MATRIX


def test_negative_ignore_label_and_more_clusters_than_classes():
    target = np.where(TARGET == 255, -1, TARGET)
    prediction = PREDICTION + 2  # clusters 2, 3, 4 of 6
    expected = [[0, 0, *row, 0] for row in MATRIX]
    assert confusion_matrix(target, prediction, 3, 6, -1).tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_ignore_label_that_is_a_class_id(dtype):
    """Label 2 is to be ignored though it is below num_classes."""
    target, prediction = TARGET.clip(0, 2).astype(dtype), PREDICTION.astype(dtype)
    assert confusion_matrix(target, prediction, 3, 3, 2).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_strays_are_found_beside_as_many_ignored_pixels_of_a_class_id():
    target, prediction = np.array([[0, 200]], np.uint8), np.zeros((1, 2), np.uint8)
    with pytest.raises(ValueError, match=r"label ids \[200\] \(1 pixels\)"):
        confusion_matrix(target, prediction, 2, 2, ignore_label=0)


@pytest.mark.parametrize("num_predicted", [5, 256, 300])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_fast_and_general_path_against_a_loop(num_predicted, dtype):
    rng = np.random.default_rng(0)
    target = rng.choice([0, 1, 2, 3, 255], size=(23, 31)).astype(dtype)
    prediction = rng.integers(0, num_predicted, (23, 31))
    prediction = prediction.astype(np.uint8 if num_predicted <= 256 else np.int64)
    expected = np.zeros((4, num_predicted), np.int64)
    for t, p in zip(target.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert np.array_equal(confusion_matrix(target, prediction, 4, num_predicted, 255), expected)


def test_more_pixels_than_float32_counts():
    """2 ** 24 + 3 equal pixels: a float32 counter stops at 2 ** 24."""
    size = 2**24 + 3
    target = np.zeros((1, size), np.uint8)
    assert _count_uint8(target, target, 1, 1).tolist() == [[size]]
    assert confusion_matrix(target, target, 1, 1, 255).tolist() == [[size]]


# Stock detectron2 turns the first into mIoU 100, the second into nan and the third into a reshape error.
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("stray", [3, 7, 200])
def test_label_out_of_range_names_file_ids_and_count(stray, dtype):
    target = np.array([[0, 1, stray, stray]], dtype)
    with pytest.raises(ValueError, match=rf"town_7\.png: label ids \[{stray}\] \(2 pixels\).*0 to 2.*255"):
        confusion_matrix(target, np.zeros((1, 4), dtype), 3, 3, 255, name="town_7.png")


def test_negative_label_that_is_not_ignored():
    with pytest.raises(ValueError, match=r"label ids \[-1\]"):
        confusion_matrix(np.array([[0, -1]]), np.array([[0, 0]]), 3, 3, 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_prediction_out_of_range(dtype):
    with pytest.raises(ValueError, match=r"a\.png: the prediction holds ids up to 5, but the model has 3"):
        confusion_matrix(np.zeros((1, 2), dtype), np.array([[0, 5]], dtype), 3, 3, 255, name="a.png")


def test_sizes_differ():
    with pytest.raises(ValueError, match=r"a\.png: labels are \(2, 3\), the prediction is \(3, 2\)"):
        confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 3, 3, 255, name="a.png")


def test_scores_by_hand():
    # IoU: 2/(3+2-2) = 2/3; 1/(2+2-1) = 1/3; 1/(1+2-1) = 1/2. Recall: 2/3, 1/2, 1. Right: 4 of 6 pixels.
    result = scores(np.array(MATRIX))
    assert np.allclose(result["IoU"], [200 / 3, 100 / 3, 50])
    assert result["mIoU"] == pytest.approx(50)
    assert result["mACC"] == pytest.approx((200 / 3 + 50 + 100) / 3)
    assert result["pACC"] == pytest.approx(400 / 6)


def test_absent_classes():
    # Class 1 is only predicted: IoU 0, counts. Class 2 occurs nowhere: does not count. Class 0: 3 of 4.
    result = scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert result["IoU"][:2].tolist() == [75, 0]
    assert np.isnan(result["IoU"][2])
    assert result["mIoU"] == 37.5
    assert result["mACC"] == result["pACC"] == 75


def test_surplus_columns_are_wrong_and_an_empty_matrix_has_no_scores():
    result = scores(np.array([[3, 0, 1], [0, 4, 0]]))
    assert result["IoU"].tolist() == [75, 100]
    assert result["pACC"] == 87.5
    assert np.isnan([scores(np.zeros((2, 2), int))[k] for k in ("mIoU", "mACC", "pACC")]).all()
