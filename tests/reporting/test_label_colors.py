import numpy as np

from densesiam_d2.reporting.label_colors import colorize, overlay, palette


def test_colorize_by_hand():
    colors = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    labels = np.array([[0, 1, 255]], np.uint8)
    assert colorize(labels, 2, colors).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]
    image = np.full((1, 3, 3), 100, np.uint8)
    # 3/4 of 100 plus 1/4 of 255 or of 0; cv2 rounds 138.75 to 139.
    assert overlay(image, labels, 0.25, colors).tolist() == [[[139, 75, 75], [75, 139, 75], [75, 75, 75]]]


def test_palette_is_stable_and_distinct():
    colors = palette(256)
    assert np.array_equal(palette(27), colors[:27])
    first = colors[:27].astype(int)
    distance = np.abs(first[:, None] - first[None]).max(axis=-1) + 255 * np.eye(27, dtype=int)
    assert distance.min() > 20
