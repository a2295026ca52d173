"""Find where two views of one image show the same points. Only this file computes with coordinates of views.

Coordinates are absolute pixels of the original image, continuous, x before y; the centre of the top-left pixel is
(0.5, 0.5). A *view box* ``(x0, y0, x1, y1)`` holds the original-image coordinates of a view's left, top, right and
bottom edges, so a horizontally flipped view has ``x0 > x1``. All other functions need only two such boxes.

Shape shorthand: N images, C channels, h,w feature cells, S side of the sampling grid.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "view_box",
    "view_box_of_axis_maps",
    "overlap_boxes",
    "grid_points",
    "near_cells",
    "sliding_windows",
    "move_windows",
    "to_grid_sample",
    "overlap_grids",
    "warp_grid",
    "sample",
]


def view_box(transforms, height: int, width: int, view_height: int, view_width: int) -> list[float]:
    """Derive a view's box from the transforms that made it.

    Args:
        transforms: any object with ``apply_coords``, which maps (K, 2) points of the original image to pixels of the
            view, such as detectron2's ``TransformList``.
        height, width: size of the original image, in pixels.
        view_height, view_width: size of the view, in pixels.

    Returns:
        The four numbers of the view box.

    Raises:
        ValueError: the transforms rotate, shear or warp, so that no box can describe the view.
    """
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height), (width / 2, height / 2)], dtype=np.float64)
    # Plain Python numbers: for so few, NumPy's function calls would take longer.
    (x0, y0), right, down, (x1, y1), centre = transforms.apply_coords(corners).tolist()
    expected = (x1, y0, x0, y1, (x0 + x1) / 2, (y0 + y1) / 2)
    error = sum(abs(a - b) for a, b in zip((*right, *down, *centre), expected, strict=True))
    sx, sy = (x1 - x0) / width, (y1 - y0) / height
    if not (sx and sy and error < 1e-3):  # NaN is refused too
        raise ValueError(
            f"a view must be an axis-aligned rectangle of its image; {transforms} rotates, shears or warps it"
        )
    return [-x0 / sx, -y0 / sy, (view_width - x0) / sx, (view_height - y0) / sy]


def view_box_of_axis_maps(
    maps: Iterable[tuple[float, float, float, float]], view_height: int, view_width: int
) -> list[float]:
    """Derive a view's box from what each transform does to x and to y, as :func:`view_box` does from any transforms.

    Args:
        maps: scale and shift of x, then of y, of each transform, in their order.
        view_height, view_width: size of the view, in pixels.

    Returns:
        The four numbers of the view box.
    """
    sx, x0, sy, y0 = 1.0, 0.0, 1.0, 0.0
    for scale_x, shift_x, scale_y, shift_y in maps:
        sx, x0, sy, y0 = sx * scale_x, x0 * scale_x + shift_x, sy * scale_y, y0 * scale_y + shift_y
    return [-x0 / sx, -y0 / sy, (view_width - x0) / sx, (view_height - y0) / sy]


def overlap_boxes(boxes1: torch.Tensor, boxes2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersect view boxes.

    Args:
        boxes1, boxes2: (N, 4) view boxes of the same images.

    Returns:
        (N, 4) boxes of the intersections, unflipped (``x0 <= x1``; empty ones have zero area), and (N,) the share of
        view 2's area that each covers, in [0, 1].
    """
    low1, high1 = _unflip(boxes1)
    low2, high2 = _unflip(boxes2)
    low = torch.maximum(low1, low2)
    high = torch.maximum(torch.minimum(high1, high2), low)
    fraction = (high - low).prod(dim=1) / (high2 - low2).prod(dim=1)
    return torch.cat([low, high], dim=1), fraction


def _unflip(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])


def grid_points(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Return the centres of ``size`` x ``size`` equal cells of each box.

    Args:
        boxes: (N, 4) boxes in original-image pixels; a flipped box gives points from its left view edge to its right.
        size: S.

    Returns:
        (N, S, S, 2) points as (x, y), rows first.
    """
    centres = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * centres  # (N, S)
    y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * centres  # (N, S)
    return torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)


def near_cells(boxes1: torch.Tensor, boxes2: torch.Tensor, size: int, distance: float) -> torch.Tensor:
    """Tell which cells of two views have their centres close together in the original image.

    Args:
        boxes1, boxes2: (N, 4) view boxes of the same images.
        size: S, each view has S x S cells.
        distance: centres must be closer than this, in diagonals of a cell. Of the two views' cells, the larger counts.

    Returns:
        (N, S * S, S * S) bool, [n, i, j] for cell i of view 1 and cell j of view 2; cells are counted row by row.

    Source: PixPro, Eq. 1 (arXiv 2011.10043). Departure: distances are in pixels (there: x is divided by the width of
    the image and y by its height; both give the same cells for square images).
    """
    centres1, centres2 = (grid_points(boxes, size).flatten(1, 2) for boxes in (boxes1, boxes2))  # (N, S * S, 2)
    diagonals = [torch.linalg.vector_norm(boxes[:, 2:] - boxes[:, :2], dim=1) / size for boxes in (boxes1, boxes2)]
    limit = distance * torch.maximum(*diagonals)  # (N,)
    # cdist's other mode subtracts squares of coordinates, which is inaccurate far from the origin.
    distances = torch.cdist(centres1, centres2, compute_mode="donot_use_mm_for_euclid_dist")
    return distances < limit[:, None, None]


def sliding_windows(view_size: int, window: int, stride: int) -> torch.Tensor:
    """Return the square windows (W, 4) that lie in a square view, as (x0, y0, x1, y1) in its pixels, row by row.

    Args:
        view_size, window: sides of the view and of a window, in pixels. Windows end before the view's last edge.
        stride: distance from one window to the next.

    Source: Tete-Xiao/ReSim, moco/datasets.py.
    """
    starts = torch.arange(0, view_size - window, stride, dtype=torch.float32)
    y, x = torch.meshgrid(starts, starts, indexing="ij")
    return torch.stack([x, y, x + window, y + window], dim=-1).flatten(0, 1)


def move_windows(
    windows: torch.Tensor, boxes1: torch.Tensor, boxes2: torch.Tensor, view_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find in view 2 what windows of view 1 show.

    Args:
        windows: (W, 4) windows as (x0, y0, x1, y1) in pixels of view 1, the same for all images.
        boxes1, boxes2: (N, 4) view boxes of the same images.
        view_size: side of both views, in pixels.

    Returns:
        (N, W, 4) the windows in pixels of view 2, unflipped (``x0 <= x1``), and (N, W) bool: whether they lie wholly
        in view 2. For the others the result is the square pixel (0, 0, 1, 1).

    Source: ReSim, Sec. 3.2 (arXiv 2103.12902); Tete-Xiao/ReSim, moco/datasets.py.
    """
    corners = windows.view(1, -1, 2, 2) / view_size  # (1, W, 2, 2), in shares of view 1
    first1, last1, first2, last2 = (edge[:, None, None] for b in (boxes1, boxes2) for edge in (b[:, :2], b[:, 2:]))
    points = first1 + corners * (last1 - first1)  # in pixels of the image
    corners = (points - first2) / (last2 - first2) * view_size  # (N, W, 2, 2), in pixels of view 2
    low, high = corners.amin(dim=2), corners.amax(dim=2)
    inside = ((low >= 0) & (high <= view_size)).all(dim=2)
    moved = torch.cat([low, high], dim=2)
    return torch.where(inside[..., None], moved, moved.new_tensor([0.0, 0.0, 1.0, 1.0])), inside


def to_grid_sample(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Turn original-image points into sampling coordinates of a view.

    Args:
        points: (N, S, S, 2) points as (x, y) in original-image pixels.
        boxes: (N, 4) boxes of the view.

    Returns:
        (N, S, S, 2) coordinates for ``grid_sample(align_corners=False)``: -1 and 1 are the view's edges.
    """
    first = boxes[:, None, None, :2]
    last = boxes[:, None, None, 2:]
    return (points - first) / (last - first) * 2 - 1


def overlap_grids(
    boxes1: torch.Tensor, boxes2: torch.Tensor, size: int, *, cells: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the positions in both views of S x S points of their overlap.

    The points follow the orientation of view 1, so that two identical views get the identity grid. If the views of an
    image do not overlap, each gets its own identity grid, so that all numbers are finite; ``valid`` is False for it.

    Args:
        boxes1, boxes2: (N, 4) view boxes of the same images.
        size: S.
        cells: the grid of view 2 covers whole cells, of which view 2 has ``cells`` x ``cells``, as in the released code
            (:func:`_to_whole_cells`); None: it covers the overlap exactly.

    Returns:
        Two (N, S, S, 2) grids for :func:`sample`, and (N,) bool: whether the views overlap.

    Source: DenseSiam, "GridSample" (project page); PixPro for boxes with swapped edges for flipped views.
    """
    overlap, fraction = overlap_boxes(boxes1, boxes2)
    valid = fraction > 0
    flip1 = (boxes1[:, 0] > boxes1[:, 2])[:, None]
    overlap = torch.where(flip1, overlap[:, [2, 1, 0, 3]], overlap)
    points1 = grid_points(torch.where(valid[:, None], overlap, boxes1), size)
    overlap = torch.where(valid[:, None], overlap, boxes2)
    grid2 = to_grid_sample(grid_points(overlap, size), boxes2)
    if cells is not None:
        edges = to_grid_sample(overlap.view(-1, 2, 1, 2), boxes2)  # (N, 2, 1, 2)
        grid2 = _to_whole_cells(grid2, edges, cells)
    return to_grid_sample(points1, boxes1), grid2, valid


def _to_whole_cells(grid: torch.Tensor, edges: torch.Tensor, cells: int) -> torch.Tensor:
    """Move a grid to whole cells of a view's feature map, as if these cells were cut out and resized.

    The number of cells in a row is the overlap's width in cells, rounded down. The first is where the cells that are
    left over are divided between both sides in the ratio of the overlap, rounded to the nearest. The same is done for
    columns. Points nearer to the edge than half a cell are moved to the centres of the outer cells, because a resize
    does not see the cells beyond.

    Args:
        grid: (N, S, S, 2) for :func:`sample`.
        edges: (N, 2, 1, 2) two opposite corners of the overlap, in the same coordinates.
        cells: of a row and of a column of the feature map.

    Source: ReplayRandomResizedCrop in densesiam/datasets/pipelines/index_transforms.py of ZwwWayne/DenseSiam.
    """
    low, high = edges.amin(dim=1, keepdim=True), edges.amax(dim=1, keepdim=True)  # (N, 1, 1, 2)
    share = (high - low) / 2
    number = (share * cells + 1e-3).floor().clamp(min=1)  # a float of a whole number may lie just below it
    before = (low + 1) / 2 / (1 - share).clamp(min=1e-6)  # share of what is left over that lies before the overlap
    first = ((cells - number) * before).round()
    new_low, new_high = first / cells * 2 - 1, (first + number) / cells * 2 - 1
    moved = new_low + (grid - low) / (high - low) * (new_high - new_low)
    return torch.minimum(torch.maximum(moved, new_low + 1 / cells), new_high - 1 / cells)


def warp_grid(boxes1: torch.Tensor, boxes2: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where view 2 shows the pixels of view 1, to bring maps of view 2 into the frame of view 1.

    Args:
        boxes1, boxes2: (N, 4) view boxes of the same images.
        size: S, side of view 1 in pixels.

    Returns:
        (N, S, S, 2) grid for :func:`sample`, and (N, S, S) bool: whether view 2 shows the centre of the pixel.
    """
    grid = to_grid_sample(grid_points(boxes1, size), boxes2)
    return grid, (grid.abs() <= 1).all(dim=-1)


def sample(features: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Interpolate features bilinearly at grid points; points outside the map get the value at its border.

    Args:
        features: (N, C, h, w).
        grid: (N, S, S, 2) from :func:`overlap_grids`.

    Returns:
        (N, C, S, S) float32, because half precision would move points by up to 4 % of a cell of an 80 x 80 map.
    """
    features, grid = features.float(), grid.float()
    if features.device.type == "cpu":
        return _weighted_cells(features, grid)
    return F.grid_sample(features, grid, padding_mode="border", align_corners=False)


def _weighted_cells(features: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Do what ``grid_sample`` does: each point is a weighted sum of the four cells around it.

    For channels-last features it takes a quarter of the time on a CPU (128 channels, with the backward), and its result
    and its gradient are channels-last as well, so that nothing must be copied for the convolutions before and after.
    """
    n, c, h, w = features.shape
    last = grid.new_tensor([w - 1, h - 1])
    points = torch.minimum((grid * (last + 1) + last) / 2, last).clamp(min=0)  # in cells: the first one's centre is 0
    low = points.floor()
    x, y = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).long().unbind(dim=-2)  # (N, S, S, 2) each
    x_weights, y_weights = torch.stack([1 - (points - low), points - low], dim=-1).unbind(dim=-2)
    rows = torch.arange(n).view(n, 1, 1, 1) * h + y
    cells = (rows[..., :, None] * w + x[..., None, :]).view(-1, 4)
    weights = (y_weights[..., :, None] * x_weights[..., None, :]).view(-1, 4)
    table = features.movedim(1, -1).reshape(-1, c)  # one row per cell
    values = F.embedding_bag(cells, table, per_sample_weights=weights, mode="sum")
    return values.view(*grid.shape[:3], c).movedim(-1, 1)
