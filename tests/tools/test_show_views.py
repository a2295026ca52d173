import numpy as np
import pytest
import torch
from PIL import Image

from densesiam_d2.tools import show_views

from ..data.photos import smooth_image


def test_points_are_drawn_where_the_views_show_them():
    # View 1 is the left half of the image, view 2 the whole, flipped. With a grid of 1 the only point is the centre of
    # the overlap: a quarter from the left in the image, the middle of view 1, a quarter from the right in view 2.
    image = np.full((120, 160, 3), 60, np.uint8)
    views = torch.full((2, 3, 32, 32), 60, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 80.0, 120.0], [160.0, 0.0, 0.0, 120.0]])
    picture = show_views.draw_views(image, views, boxes, 1).astype(int)
    height, width = show_views.HEIGHT, show_views.IMAGE_WIDTH
    left = np.cumsum([show_views.MARGIN, width + show_views.MARGIN, height + show_views.MARGIN])
    y = show_views.TITLE + height // 2
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
    none = show_views.draw_views(image, views, boxes, 7)
    both = show_views.draw_views(smooth_image(90, 160), views, torch.tensor([[0.0, 0, 160, 90]] * 2), 7)
    assert none.shape == both.shape


def test_command(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(smooth_image(60, 80, seed=i)).save(tmp_path / "photos" / f"{i}.png")
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nMODEL:\n  META_ARCHITECTURE: DenseSiam\nINPUT:\n  FORMAT: RGB\n")
    output = tmp_path / "views.png"
    base = ["--config-file", str(config), "--output", str(output)]
    show_views.main([*base, "--input", str(tmp_path / "photos"), "--num", "2", "INPUT.SSL.VIEW_SIZE", "32"])
    assert "2 of 3 images" in capsys.readouterr().out
    row = show_views.TITLE + show_views.HEIGHT + show_views.MARGIN
    assert Image.open(output).size[1] == 2 * row
    for words, message in (
        ([*base, "--input", str(tmp_path / "nowhere")], "nowhere does not exist"),
        (base, r"DATASETS\.TRAIN is empty"),
        ([*base, "INPUT.SSL.VIEW_SIZEE", "3"], r"did you mean INPUT\.SSL\.VIEW_SIZE"),
        ([*base, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "whole images, not on views"),
        ([*base[:2], "--output", str(tmp_path / "views")], "must end like an image"),
    ):
        with pytest.raises(SystemExit, match=f"show_views: (?s:.*){message}"):
            show_views.main(words)
