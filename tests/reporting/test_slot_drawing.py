import numpy as np

from densesiam_d2.reporting.slot_drawing import MARGIN, SIDE, draw_slots, mark_region


def test_outside_a_region_is_dimmed():
    image = np.full((40, 40, 3), 200, np.uint8)
    region = np.zeros((40, 40), bool)
    region[10:30, 10:30] = True
    marked = mark_region(image, region)
    assert (marked[15:25, 15:25] == 200).all()
    assert (marked[:5] == 160).all()  # 0.3 * 200 + 100
    assert marked[20, 10].tolist() != [200, 200, 200]  # the outline
    assert (image == 200).all()


def test_an_empty_region_is_no_error():
    assert (mark_region(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)) == 100).all()


def test_rows_of_different_length():
    black = np.zeros((30, 30, 3), np.uint8)
    picture = draw_slots([("7", [black, black]), ("12", [black])])
    assert picture.shape == (4 + 2 * (SIDE + 4), MARGIN + 2 * (SIDE + 4), 3)
    assert (picture[4 : 4 + SIDE, MARGIN : MARGIN + SIDE] == 0).all()
    assert (picture[8 + SIDE :, MARGIN + SIDE + 4 :] == 255).all()  # the second row has one picture
    assert (picture[:SIDE, :MARGIN] < 255).any()  # the name
