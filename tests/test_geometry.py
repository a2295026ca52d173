"""Geometry against numbers derived by hand. Runs without detectron2."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densesiam_d2.geometry import (
    grid_points,
    move_windows,
    near_cells,
    overlap_boxes,
    overlap_grids,
    sample,
    sliding_windows,
    to_grid_sample,
    view_box,
    warp_grid,
)


class Affine:
    """x' = sx * x + kx * y + tx, and so for y: what apply_coords of a list of transforms amounts to."""

    def __init__(self, sx, tx, sy, ty, shear=0.0):
        self.sx, self.tx, self.sy, self.ty, self.shear = sx, tx, sy, ty, shear

    def apply_coords(self, coords):
        x, y = coords[:, 0], coords[:, 1]
        return np.stack([self.sx * x + self.shear * y + self.tx, self.sy * y + self.ty], axis=1)


def test_view_box_of_crop_and_resize():
    # Crop x from 20 to 60, y from 10 to 30 of a 100 x 80 image, resized to 20 x 40 (width x height):
    # x' = (x - 20) * 20 / 40, y' = (y - 10) * 40 / 20.
    transform = Affine(0.5, -10, 2, -20)
    assert view_box(transform, 80, 100, 40, 20) == pytest.approx([20, 10, 60, 30])


def test_view_box_of_flip_has_x0_above_x1():
    # The same crop, flipped: x' = 20 - (x - 20) / 2.
    assert view_box(Affine(-0.5, 30, 2, -20), 80, 100, 40, 20) == pytest.approx([60, 10, 20, 30])


def test_view_box_refuses_shear():
    with pytest.raises(ValueError, match="axis-aligned"):
        view_box(Affine(1, 0, 1, 0, shear=0.3), 10, 10, 10, 10)


def test_overlap_boxes_by_hand():
    # View 1 spans x 0..10, y 0..10; view 2 (flipped) spans x 6..16, y 5..25. They share x 6..10, y 5..10: 20 of 200.
    boxes1 = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4]])
    boxes2 = torch.tensor([[16.0, 5, 6, 25], [4, 0, 8, 4]])  # the second pair touches in a line
    overlap, fraction = overlap_boxes(boxes1, boxes2)
    assert overlap[0].tolist() == [6, 5, 10, 10]
    assert fraction.tolist() == pytest.approx([0.1, 0.0])


def test_grid_points_are_cell_centres():
    # x from 10 to 110 in 3 cells: centres 10 + 100/6, 10 + 300/6, 10 + 500/6.
    points = grid_points(torch.tensor([[10.0, 0, 110, 6]]), 3)
    assert points[0, 0, :, 0].tolist() == pytest.approx([26.6667, 60, 93.3333], abs=1e-3)
    assert points[0, :, 0, 1].tolist() == [1, 3, 5]


def pairs_of(near: torch.Tensor) -> set[tuple[int, int]]:
    return {tuple(pair) for pair in near.nonzero().tolist()}


def test_near_cells_of_a_moved_view():
    # Cells of 3 x 4 pixels, diagonal 5. View 2 lies 3 pixels to the right: its left column is view 1's right column.
    # Cells are numbered 0 1 / 2 3. Equal centres: (1, 0), (3, 2). The other distances are at least 3, 0.6 diagonals.
    box1, box2 = torch.tensor([[0.0, 0, 6, 8]]), torch.tensor([[3.0, 0, 9, 8]])
    same = {(1, 0), (3, 2)}
    assert pairs_of(near_cells(box1, box2, 2, 0.5)[0]) == same
    # 0.7 diagonals are 3.5 pixels: neighbours in a row (3 pixels) are near, those in a column (4) are not.
    beside = {(0, 0), (2, 2), (1, 1), (3, 3)}
    assert pairs_of(near_cells(box1, box2, 2, 0.7)[0]) == same | beside


def test_near_cells_of_a_flipped_view():
    # Views 1 and 2 show the same 6 x 8 pixels, view 2 flipped: cell 0 of view 1 is cell 1 of view 2, and so on.
    box1, box2 = torch.tensor([[0.0, 0, 6, 8]]), torch.tensor([[6.0, 0, 0, 8]])
    assert pairs_of(near_cells(box1, box2, 2, 0.5)[0]) == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_near_cells_are_measured_by_the_larger_cell():
    # View 1 has one cell of 3 x 4 pixels with its centre at (1.5, 2), view 2 one of 30 x 40 with its centre at (15, 20)
    # and a diagonal of 50. The distance is that of 13.5 x 18 pixels, 22.5: 0.45 of the larger diagonal.
    box1, box2 = torch.tensor([[0.0, 0, 3, 4]]), torch.tensor([[0.0, 0, 30, 40]])
    assert near_cells(box1, box2, 1, 0.46).all() and near_cells(box2, box1, 1, 0.46).all()
    assert not near_cells(box1, box2, 1, 0.44).any()


def test_near_cells_far_from_the_origin_are_exact():
    box1, box2 = torch.tensor([[30000.0, 0, 30006, 8]]), torch.tensor([[30003.0, 0, 30009, 8]])
    assert pairs_of(near_cells(box1, box2, 2, 0.5)[0]) == {(1, 0), (3, 2)}


@pytest.mark.parametrize(("window", "stride", "per_side", "last"), [(48, 32, 6, 160), (32, 24, 8, 168)])
def test_sliding_windows_of_resim(window, stride, per_side, last):
    # Starts 0, 32, ... 160 of 48 pixels in 224 (192 would end behind it), and 0, 24, ... 168 of 32 (192 would end at
    # 224, the edge itself, which is left out as released).
    windows = sliding_windows(224, window, stride)
    assert windows.shape == (per_side**2, 4)
    assert windows[0].tolist() == [0, 0, window, window]
    assert windows[1].tolist() == [stride, 0, stride + window, window]  # rows first
    assert windows[-1].tolist() == [last, last, last + window, last + window]


def test_move_windows_by_hand():
    # View 1 shows x 100..300, y 0..100 in 100 pixels: 2 and 1 pixels of the image per pixel. View 2 shows x 150..250,
    # y 0..200: 1 and 2 pixels.
    windows = torch.tensor([[30.0, 20, 50, 60], [0, 0, 20, 20], [25, 0, 75, 100]])
    box1, box2 = torch.tensor([[100.0, 0, 300, 100]]), torch.tensor([[150.0, 0, 250, 200]])
    # Window 1: x 160..200, y 20..60 in the image; 10..50 and 10..30 in view 2. Window 2 starts at x 100, outside.
    # Window 3: x 150..250, y 0..100, touches both sides of view 2: 0..100, 0..50.
    moved, inside = move_windows(windows, box1, box2, 100)
    assert inside.tolist() == [[True, False, True]]
    expected = torch.tensor([[10.0, 10, 50, 30], [0, 0, 1, 1], [0, 0, 100, 50]])
    assert torch.allclose(moved[0], expected, atol=1e-4)


def test_move_windows_into_a_flipped_view_by_hand():
    # As before, but view 2 is flipped: x 160..200 of the image is 90..50 from its left edge, at x = 250.
    window, box2 = torch.tensor([[30.0, 20, 50, 60]]), torch.tensor([[250.0, 0, 150, 200]])
    moved, inside = move_windows(window, torch.tensor([[100.0, 0, 300, 100]]), box2, 100)
    assert inside.all() and moved[0, 0].tolist() == pytest.approx([50, 10, 90, 30])
    # View 1 flipped as well: x 30..50 of view 1 is 240..200 of the image, which is 10..50 of view 2.
    moved, inside = move_windows(window, torch.tensor([[300.0, 0, 100, 100]]), box2, 100)
    assert inside.all() and moved[0, 0].tolist() == pytest.approx([10, 10, 50, 30])


def test_windows_of_the_same_view_stay_where_they_are():
    windows, box = sliding_windows(64, 16, 8), torch.tensor([[90.0, 7, 12, 51]])
    moved, inside = move_windows(windows, box, box, 64)
    assert inside.all() and torch.allclose(moved[0], windows, atol=1e-4)


def test_to_grid_sample_by_hand():
    # In a view from x = 10 to 30, x = 15 lies at a quarter: -0.5; flipped, at three quarters: +0.5.
    points = torch.tensor([[[[15.0, 4.0]]]])
    assert to_grid_sample(points, torch.tensor([[10.0, 0, 30, 8]])).flatten().tolist() == [-0.5, 0]
    assert to_grid_sample(points, torch.tensor([[30.0, 0, 10, 8]])).flatten().tolist() == [0.5, 0]


def test_identical_views_get_the_identity_grid():
    box = torch.tensor([[30.0, 2, 10, 18]])  # flipped
    grid1, grid2, valid = overlap_grids(box, box, 4)
    features = torch.randn(1, 3, 4, 4)
    assert valid.all()
    assert torch.allclose(sample(features, grid1), features, atol=1e-6)
    assert torch.allclose(sample(features, grid2), features, atol=1e-6)


def test_views_without_overlap_are_marked_and_stay_finite():
    boxes1 = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    boxes2 = torch.tensor([[10.0, 0, 20, 10], [5, 5, 15, 15]])
    grid1, grid2, valid = overlap_grids(boxes1, boxes2, 7)
    assert valid.tolist() == [False, True]
    assert torch.isfinite(grid1).all() and torch.isfinite(grid2).all()


def test_whole_cells_by_hand():
    """View 2 is 80 pixels and 8 cells wide; view 1 shows its x 13 to 48, mirrored, and its y 0 to 80.

    35 pixels are 3.5 cells: 3 are cut out, and 5 are left over. Of the 45 pixels around the overlap 13 lie before it:
    5 * 13 / 45 = 1.4 cells, so that the 3 cells are 1 to 3. Three points fall on their centres, last first.
    """
    grid1, grid2, _ = overlap_grids(torch.tensor([[48.0, 0, 13, 80]]), torch.tensor([[0.0, 0, 80, 80]]), 3, cells=8)
    assert torch.allclose(grid1, overlap_grids(*[torch.tensor([[0.0, 0, 1, 1]])] * 2, 3)[0])  # identity
    values = torch.arange(8.0).expand(1, 1, 8, 8)
    assert sample(values, grid2)[0, 0, 0].tolist() == pytest.approx([3, 2, 1], abs=1e-5)
    # Rows: all 8 cells, whose thirds have their centres at cells 8 / 6 - 0.5, 4 - 0.5 and 40 / 6 - 0.5.
    rows = sample(values.transpose(2, 3), grid2)[0, 0, :, 0]
    assert rows.tolist() == pytest.approx([5 / 6, 3.5, 37 / 6], abs=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
def test_whole_cells_are_the_released_crop(flipped):
    """The released code cuts cells out of the map of view 2, resizes them, and flips them if view 1 is flipped."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 20, 20, generator=generator)
    whole = torch.tensor([[0.0, 0, 640, 640]])
    for scale, x, y in torch.rand(40, 3, generator=generator).tolist():
        side = int((0.5 + scale / 2) * 640)
        left, top = (640 - side) * x, (640 - side) * y
        number = int(side / 640 * 20)
        first = [round((20 - number) * start) for start in (y, x)]
        cut = features[:, :, first[0] : first[0] + number, first[1] : first[1] + number]
        expected = torch.nn.functional.interpolate(cut, (24, 24), mode="bilinear", align_corners=False)
        edges = [left + side, left] if flipped else [left, left + side]
        box = torch.tensor([[edges[0], top, edges[1], top + side]], dtype=torch.float32)
        grid = overlap_grids(box, whole, 24, cells=20)[1]
        assert torch.allclose(sample(features, grid), expected.flip(3) if flipped else expected, atol=1e-4)


def test_whole_cells_of_small_full_and_absent_overlaps():
    """At least one cell; all cells of identical views; finite where the views do not meet."""
    boxes1 = torch.tensor([[0.0, 0, 5, 80], [0, 0, 80, 80], [200, 0, 280, 80]])
    boxes2 = torch.tensor([[0.0, 0, 80, 80]]).expand(3, 4)
    _, grid, valid = overlap_grids(boxes1, boxes2, 8, cells=8)
    assert valid.tolist() == [True, True, False] and grid.isfinite().all()
    columns = sample(torch.arange(8.0).expand(3, 1, 8, 8), grid)[:, 0, 0]
    assert columns[0].tolist() == pytest.approx([0] * 8, abs=1e-5)
    assert columns[1].tolist() == pytest.approx(list(range(8)), abs=1e-5)


def test_warp_grid_by_hand():
    """View 1 covers x 0 to 8, view 2 x 4 to 12, mirrored: its left edge shows x = 12.

    Pixels of view 1 (4 of them, 2 wide) have their centres at x = 1, 3, 5, 7, of which view 2 shows the last two, at
    shares (12 - 5) / 8 and (12 - 7) / 8 of its width: 0.75 and 0.25 in coordinates from -1 to 1. Rows agree.
    """
    grid, mask = warp_grid(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[12.0, 0, 4, 8]]), 4)
    assert grid.shape == (1, 4, 4, 2) and mask.tolist() == [[[False, False, True, True]] * 4]
    assert torch.equal(grid[0, 0, :, 0], torch.tensor([1.75, 1.25, 0.75, 0.25]))
    assert torch.equal(grid[0, :, 0, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    values = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    # 0.75 lies at cell (0.75 + 1) / 2 * 4 - 0.5 = 3, 0.25 at cell 2.
    assert sample(values, grid)[0, 0, 0, 2:].tolist() == [3, 2]


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)])
def test_sample_is_grid_sample(size):
    """Values and gradients, for points inside and outside the map, in both memory formats."""
    torch.manual_seed(0)
    grid = torch.rand(2, 6, 6, 2) * 3 - 1.5
    grid[0, 0, 0], grid[0, 0, 1], grid[0, 0, 2] = -1, 1, 0
    features, weights = torch.randn(2, 3, *size), torch.randn(2, 3, 6, 6)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        f = features.clone(memory_format=memory_format).requires_grad_()
        for values in (sample(f, grid), F.grid_sample(f, grid, padding_mode="border", align_corners=False)):
            (gradient,) = torch.autograd.grad((values * weights).sum(), f)
            results.append((values, gradient))
    for values, gradient in results[:-1]:
        assert torch.allclose(values, results[-1][0], atol=1e-6)
        assert torch.allclose(gradient, results[-1][1], atol=1e-5)


def _paint(box: torch.Tensor, size: int) -> torch.Tensor:
    """Draw a view whose pixels hold their own original-image coordinates: (1, 2, size, size)."""
    return grid_points(box[None], size).permute(0, 3, 1, 2)


def test_painted_coordinates_agree_in_both_views():
    """1,000 random pairs of boxes, half of them flipped: both views sampled at the grids read the same coordinates.

    Bilinear interpolation is exact for a linear ramp except within half a view pixel of the border, where the border
    value counts: there each view may be off by half its own pixel, in opposite directions.
    """
    generator = np.random.default_rng(0)
    checked = 0
    for _ in range(1000):
        boxes = []
        for _ in range(2):
            x0, y0 = generator.uniform(0, 300, 2)
            w, h = generator.uniform(20, 300, 2)
            box = [x0, y0, x0 + w, y0 + h]
            if generator.random() < 0.5:
                box[0], box[2] = box[2], box[0]
            boxes.append(torch.tensor([box], dtype=torch.float64))
        grid1, grid2, valid = overlap_grids(*boxes, 7)
        if not valid.all():
            continue
        read1 = sample(_paint(boxes[0][0], 56), grid1)
        read2 = sample(_paint(boxes[1][0], 56), grid2)
        half_pixels = sum((box[:, 2:] - box[:, :2]).abs() / 56 for box in boxes) / 2  # (1, 2)
        assert ((read1 - read2).abs() <= half_pixels[:, :, None, None] + 1e-2).all()
        inside = (grid1.abs().amax(-1) < 1 - 1 / 56) & (grid2.abs().amax(-1) < 1 - 1 / 56)
        checked += int(inside.sum())
        assert ((read1 - read2).abs().amax(dim=1)[inside] < 1e-2).all()
    assert checked > 10_000
