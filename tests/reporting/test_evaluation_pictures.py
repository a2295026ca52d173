import cv2
import numpy as np
import pytest

from densesiam_d2.evaluation.examples import Example
from densesiam_d2.reporting.evaluation_pictures import draw_confusion, draw_contact_sheet, write_evaluation_pictures

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
NAMES = ["car", "road", "sky"]


def example(number, width=96):
    """Class 1 on the left and an ignored right half; the prediction is cluster 3 above cluster 0."""
    target, prediction = np.ones((128, width), np.uint8), np.zeros((128, width), np.uint8)
    target[:, width // 2 :], prediction[:64] = 255, 3
    return Example(f"{number}.jpg", np.full((128, width, 3), 40 + number, np.uint8), target, prediction)


def test_contact_sheet():
    """Each cell is a picture with a border of 6 pixels; three examples take two rows, below a bar of 26 pixels."""
    sheet = draw_contact_sheet([example(i) for i in range(3)], NAMES, [2, None, 1, 0], COLORS)
    cell = 96 + 6
    assert sheet.shape == (26 + 2 * (128 + 6) + 26, 6 * cell, 3)  # the legend has one row
    for i in range(3):
        top, left = 26 + (128 + 6) * (i // 2), 3 * cell * (i % 2)
        image, labels, prediction = (sheet[top : top + 128, left + cell * k : left + cell * k + 96] for k in range(3))
        assert (image == 40 + i).all()
        assert (labels[:, :48] == COLORS[1]).all() and (labels[:, 48:] == 0).all()
        assert (prediction[:64] == COLORS[0]).all() and (prediction[64:] == COLORS[2]).all()
    assert (sheet[26 + 134 : 26 + 134 + 128, 3 * cell :] == 255).all()  # there is no fourth example
    legend = sheet[-26:]
    assert all((legend == color).all(axis=-1).sum() > 100 for color in [*COLORS, (128, 128, 128)])


def test_clusters_without_a_class_are_grey_and_widths_may_differ():
    sheet = draw_contact_sheet([example(0), example(1, width=50)], NAMES, [None, 0, 1, 2], COLORS)
    cell = 96 + 6
    assert (sheet[26 + 64 : 26 + 128, 2 * cell : 2 * cell + 96] == 128).all()
    assert (sheet[26 : 26 + 128, 3 * cell + 50 : 4 * cell] == 255).all()


def test_predicted_classes_without_matching():
    item = Example("a", np.zeros((128, 8, 3), np.uint8), np.zeros((128, 8), np.uint8), np.full((128, 8), 2, np.uint8))
    sheet = draw_contact_sheet([item], NAMES, None, COLORS)
    assert (sheet[26 : 26 + 128, 28:36] == COLORS[2]).all()


def blue_cells(picture, shape):
    """Return (rows, columns) darkness of the cells of a drawn matrix, whose axes are its black frame."""
    dark = (picture < 60).all(axis=-1)
    rows, columns = np.flatnonzero(dark.mean(axis=1) > 0.3), np.flatnonzero(dark.mean(axis=0) > 0.3)
    frame = picture[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[columns < 0.9 * picture.shape[1]].max() - 1]
    cells = np.zeros(shape)
    for r in range(shape[0]):
        for c in range(shape[1]):
            y, x = int((r + 0.15) * frame.shape[0] / shape[0]), int((c + 0.15) * frame.shape[1] / shape[1])
            cells[r, c] = 255 - frame[y, x, 0].astype(float)
    return cells


def test_confusion_has_the_clusters_in_the_order_of_their_classes():
    """Rows over their sums, 0.1 to 1; clusters 2, 1, 0 are classes 0, 0, 1 and 3 has none."""
    matrix = np.array([[0, 200, 800, 0], [10, 0, 0, 0]])
    picture = draw_confusion(matrix, ["car", "road"], [1, 0, 0, None])
    cells = blue_cells(picture, (2, 4))
    # Class 0 has 80 % in cluster 2 (its largest, so first) and 20 % in cluster 1; class 1 has 100 % in cluster 0.
    assert cells[1, 2] > cells[0, 0] > cells[0, 1] > cells[0, 2]
    assert cells[0, 2] == cells[0, 3] == cells[1, 0] == cells[1, 1] == cells[1, 3] < 20


def test_dollar_signs_in_class_names_are_no_mathematics():
    """Matplotlib cannot read the text between them."""
    assert draw_confusion(np.array([[9, 1], [1, 9]]), ["cost $a^{$", "$5 bill"], [0, 1]).shape[2] == 3


@pytest.mark.parametrize("clusters", [3, 12, 500])
def test_confusion_of_any_number_of_clusters_fits_a_screen(clusters):
    matrix = np.random.default_rng(0).integers(0, 9, (27, clusters))
    classes = [None if i == 0 else i % 27 for i in range(clusters)]
    height, width, _ = draw_confusion(matrix, [f"class {i}" for i in range(27)], classes).shape
    assert 400 < width < 2600 and 900 < height < 1400


def test_files(tmp_path):
    folder = tmp_path / "inference"
    write_evaluation_pictures(folder, np.eye(3, dtype=int), NAMES, None, [])
    assert [path.name for path in folder.iterdir()] == ["confusion.png"]
    write_evaluation_pictures(folder, np.ones((3, 4), int), NAMES, [0, 1, 2, None], [example(0)], COLORS)
    sheet = cv2.imread(str(folder / "contact_sheet.png"))[..., ::-1]
    assert np.array_equal(sheet, draw_contact_sheet([example(0)], NAMES, [0, 1, 2, None], COLORS))
