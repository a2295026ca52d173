import numpy as np
import pycocotools.mask as mask_util

from densesiam_d2.labels.foreground import foreground_of

SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]  # pixels 1 and 2 in x and y


def test_foreground_by_hand():
    run_lengths = {"size": [4, 5], "counts": [16, 4]}  # the last of five columns of four
    crowd = np.zeros((4, 5), np.uint8, order="F")
    crowd[2:] = 1
    annotations = [
        {"segmentation": [SQUARE]},
        {"segmentation": run_lengths, "iscrowd": 0},
        {"segmentation": mask_util.encode(crowd), "iscrowd": 1},
        {"bbox": [0, 0, 4, 5]},  # has no mask
    ]
    assert foreground_of(annotations, 4, 5).tolist() == [
        [0, 0, 0, 0, 1],
        [0, 1, 1, 0, 1],
        [255, 1, 1, 255, 1],
        [255, 255, 255, 255, 1],
    ]
