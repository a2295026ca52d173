import numpy as np
import torch

from densesiam_d2.reporting import view_drawing

from ..data.photos import smooth_image


def test_points_are_drawn_where_the_views_show_them():
    # View 1 is the left half of the image, view 2 the whole, flipped. With a grid of 1 the only point is the centre of
    # the overlap: a quarter from the left in the image, the middle of view 1, a quarter from the right in view 2.
    image = np.full((120, 160, 3), 60, np.uint8)
    views = torch.full((2, 3, 32, 32), 60, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 80.0, 120.0], [160.0, 0.0, 0.0, 120.0]])
    picture = view_drawing.draw_views(image, views, boxes, 1).astype(int)
    height, width = view_drawing.HEIGHT, view_drawing.IMAGE_WIDTH
    left = np.cumsum([view_drawing.MARGIN, width + view_drawing.MARGIN, height + view_drawing.MARGIN])
    y = view_drawing.TITLE + height // 2
    for x, start in zip((width / 4, height / 2, height * 3 / 4), left, strict=True):
        dot = picture[y, int(start + x)]
        assert dot[0] > 200 and dot[1] < 80 and dot[2] < 80  # the first point is red
    # The red of a point appears nowhere else than within the dots.
    red = (picture[..., 0] > 200) & (picture[..., 1] < 40) & (picture[..., 2] < 40)
    assert 3 * 30 < red.sum() < 3 * 80  # radius 4: 50 pixels each


def test_views_without_overlap_and_portraits():
    image = np.zeros((200, 50, 3), np.uint8)
    boxes = torch.tensor([[0.0, 0.0, 20.0, 50.0], [0.0, 100.0, 20.0, 150.0]])
    views = torch.zeros((2, 3, 32, 32), dtype=torch.uint8)
    none = view_drawing.draw_views(image, views, boxes, 7)
    both = view_drawing.draw_views(smooth_image(90, 160), views, torch.tensor([[0.0, 0, 160, 90]] * 2), 7)
    assert none.shape == both.shape
