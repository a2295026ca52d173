"""Confusion matrices of label maps, and the scores that follow from them.

Shape shorthand: K classes, P predicted ids (classes or clusters), H,W pixels.
"""

import cv2
import numpy as np

__all__ = ["confusion_matrix", "mean_of_known", "scores"]

# cv2.calcHist counts in float32, which is exact up to 2 ** 24 per call.
_PIXELS_PER_CALL = 1 << 24


def confusion_matrix(
    target: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    num_predicted: int,
    ignore_label: int,
    name: str = "",
) -> np.ndarray:
    """Count the pixels of each pair of target and predicted id.

    Args:
        target: (H, W) class ids in [0, K), or ignore_label. uint8 maps are counted several times faster.
        prediction: (H, W) predicted ids in [0, P).
        num_classes: K.
        num_predicted: P.
        ignore_label: target id of the pixels that do not count, even if a class has the same id.
        name: name of the image in error messages.

    Returns:
        (K, P) int64; rows are targets.

    Raises:
        ValueError: the maps differ in size, or hold ids out of range.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"{name}: labels are {target.shape}, the prediction is {prediction.shape} (height, width)")
    if target.dtype == prediction.dtype == np.uint8 and not 0 <= ignore_label < num_classes:
        matrix = _count_uint8(target, prediction, num_classes, num_predicted)
        if matrix.sum() + np.count_nonzero(target == ignore_label) == target.size:
            return matrix  # otherwise an id is out of range; see below
    if target.dtype == np.uint8:
        ids, rows = np.arange(256), target.astype(np.int64)
    else:
        ids, rows = np.unique(target, return_inverse=True)
    counts = _count(rows.reshape(-1), prediction.reshape(-1).astype(np.int64), len(ids), num_predicted)
    if counts.sum() != target.size:
        raise ValueError(
            f"{name}: the prediction holds ids up to {prediction.max()}, but the model has {num_predicted}"
        )
    counts[ids == ignore_label] = 0
    known = (ids >= 0) & (ids < num_classes)
    strays = {int(i): int(n) for i, n in zip(ids[~known], counts[~known].sum(axis=1), strict=True) if n}
    if strays:
        raise ValueError(
            f"{name}: label ids {sorted(strays)} ({sum(strays.values())} pixels) are neither classes 0 to "
            f"{num_classes - 1} nor the ignore_label {ignore_label}: correct the labels or the dataset's metadata"
        )
    matrix = np.zeros((num_classes, num_predicted), np.int64)
    matrix[ids[known]] = counts[known]
    return matrix


def _count_uint8(target: np.ndarray, prediction: np.ndarray, num_classes: int, num_predicted: int) -> np.ndarray:
    """Return (K, P) int64 counts; pixels with an id out of range are left out."""
    matrix = np.zeros((num_classes, num_predicted), np.int64)
    target, prediction = target.reshape(1, -1), prediction.reshape(1, -1)
    for start in range(0, target.size, _PIXELS_PER_CALL):
        part = np.s_[:, start : start + _PIXELS_PER_CALL]
        pair = [np.ascontiguousarray(target[part]), np.ascontiguousarray(prediction[part])]
        sizes, ranges = [num_classes, num_predicted], [0, num_classes, 0, num_predicted]
        matrix += cv2.calcHist(pair, [0, 1], None, sizes, ranges).astype(np.int64)
    return matrix


def _count(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """Return (num_rows, num_columns) int64 counts; pixels with a column out of range are left out."""
    inside = (columns >= 0) & (columns < num_columns)
    index = rows[inside] * num_columns + columns[inside]
    return np.bincount(index, minlength=num_rows * num_columns).reshape(num_rows, num_columns)


def scores(matrix: np.ndarray) -> dict[str, float | np.ndarray]:
    """Return the usual scores of a confusion matrix, in percent.

    IoU of class c is tp / (tp + fp + fn). A class that occurs neither in the targets nor in the predictions has none
    (nan), and mIoU is the mean over the others; a class that is only predicted has IoU 0 and counts. The same holds in
    cityscapesscripts' evalPixelLevelSemanticLabeling (a class score is nan only where tp + fp + fn = 0; its average is
    over the scores that are not nan) and the released evaluations of PiCIE and DenseSiam. detectron2's SemSegEvaluator
    differs: it leaves out every class without targets.

    Args:
        matrix: (K, P >= K) counts, rows are targets. Column c < K is class c; further columns are always wrong.

    Returns:
        "mIoU", "mIoU_present" (the mean over the classes with targets), "pACC" (share of pixels that are right), "mACC"
        (mean of the classes' recalls, over the classes with targets), and "IoU", a (K,) array. Values that do not
        exist are nan.
    """
    num_classes = len(matrix)
    assert matrix.shape[1] >= num_classes, matrix.shape
    tp = np.diagonal(matrix).astype(np.float64)
    in_target = matrix.sum(axis=1).astype(np.float64)
    in_prediction = matrix.sum(axis=0)[:num_classes].astype(np.float64)
    iou = _ratio(tp, in_target + in_prediction - tp)
    return {
        "mIoU": mean_of_known(iou),
        "mIoU_present": mean_of_known(iou[in_target > 0]),
        "pACC": float(_ratio(tp.sum(), in_target.sum())),
        "mACC": mean_of_known(_ratio(tp, in_target)),
        "IoU": iou,
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return percentages, nan where the denominator is 0."""
    return 100 * np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def mean_of_known(values: np.ndarray) -> float:
    """Return the mean of the values that are not nan; nan if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
