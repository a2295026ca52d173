"""Textures and shapes of the procedural scenes.

Stuff comes in three pairs that share a colour range and differ in structure (sky/water, grass/bush, sand/brick), so
that colour alone separates three groups, not six classes. Each thing class has its own shape and pattern, and random
colours.

In this file an image is float32 (H, W, 3) RGB in about [0, 255]. The lengths in the patterns are pixels of a scene with
a side of 160; ``unit`` is the scene's side divided by 160 and scales them to other sizes.
"""

import colorsys

import cv2
import numpy as np

__all__ = ["STUFF_TEXTURES", "THING_SHAPES", "THING_PATTERNS"]

# Ranges of hue (1 is a full circle), saturation and value, shared by the two classes of a pair.
_BLUE = ((0.54, 0.62), (0.40, 0.75), (0.62, 0.92))
_GREEN = ((0.22, 0.37), (0.45, 0.75), (0.42, 0.68))
_WARM = ((0.04, 0.11), (0.35, 0.62), (0.66, 0.90))


def _noise(rng: np.random.Generator, size: int, cell_width: float, cell_height: float) -> np.ndarray:
    """Return smooth noise of about unit variance, (size, size); a cell is the size of its blobs in pixels."""
    rows, cols = int(size / cell_height) + 3, int(size / cell_width) + 3
    grid = rng.standard_normal((rows, cols), dtype=np.float32)
    enlarged = cv2.resize(
        grid, (int(cols * cell_width) + 1, int(rows * cell_height) + 1), interpolation=cv2.INTER_CUBIC
    )
    y, x = int(cell_height), int(cell_width)  # the border cell is constant, so cut it off
    return enlarged[y : y + size, x : x + size]


def _draw_colour(rng: np.random.Generator, ranges: tuple) -> np.ndarray:
    hue, saturation, value = (rng.uniform(*r) for r in ranges)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def _shade(colour: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return colour * factor[..., None]


def _rows(size: int) -> np.ndarray:
    return np.linspace(0, 1, size, dtype=np.float32)[:, None]


def sky(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth gradient with soft clouds."""
    unit = size / 160
    image = _shade(_draw_colour(rng, _BLUE), 0.95 + 0.2 * _rows(size) + np.zeros((size, size), np.float32))
    clouds = _noise(rng, size, 44 * unit, 20 * unit) + 0.4 * _noise(rng, size, 15 * unit, 9 * unit)
    alpha = 0.8 * np.clip(clouds - rng.uniform(0.1, 0.8), 0, 1)[..., None]
    return image * (1 - alpha) + 248 * alpha


def water(rng: np.random.Generator, size: int) -> np.ndarray:
    """Long horizontal ripples with bright crests."""
    unit = size / 160
    ripples = _noise(rng, size, 16 * unit, 3.2 * unit) + 0.5 * _noise(rng, size, 40 * unit, 6 * unit)
    crests = np.clip(ripples - 0.9, 0, 1)
    return _shade(_draw_colour(rng, _BLUE), 1 + 0.13 * ripples) + 90 * crests[..., None]


def grass(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fine upright blades."""
    unit = size / 160
    blades = _noise(rng, size, 1.7 * unit, 9 * unit)
    patches = _noise(rng, size, 50 * unit, 30 * unit)
    return _shade(_draw_colour(rng, _GREEN), 1 + 0.26 * blades + 0.06 * patches)


def bush(rng: np.random.Generator, size: int) -> np.ndarray:
    """Round leaves: lit discs on a shaded ground, painted one over the other."""
    unit = size / 160
    height = np.full((size, size), 0.62, np.float32)
    count = 420
    centres = rng.integers(0, size, (count, 2))
    radii = rng.uniform(3.2, 5.5, count) * unit
    tones = rng.uniform(0.72, 1.28, count)
    for (x, y), radius, tone in zip(centres.tolist(), radii.tolist(), tones.tolist(), strict=True):
        cv2.circle(height, (x, y), round(radius), tone * 0.72, -1)
        cv2.circle(height, (x, y), max(round(radius) - 1, 1), tone, -1)
    return _shade(_draw_colour(rng, _GREEN), height)


def sand(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fine grain over soft dunes."""
    unit = size / 160
    grain = rng.standard_normal((size, size), dtype=np.float32)
    dunes = _noise(rng, size, 60 * unit, 14 * unit)
    return _shade(_draw_colour(rng, _WARM), 1 + 0.055 * grain + 0.07 * dunes)


def brick(rng: np.random.Generator, size: int) -> np.ndarray:
    """Courses of bricks, each of its own tone, between lines of mortar."""
    unit = size / 160
    height, width, joint = 9 * unit * rng.uniform(0.85, 1.2), 20 * unit * rng.uniform(0.85, 1.2), 1.4 * unit
    y = np.arange(size, dtype=np.float32)[:, None] + rng.uniform(0, height)
    course = np.floor(y / height)
    x = np.arange(size, dtype=np.float32)[None] + (course % 2) * width / 2 + rng.uniform(0, width)
    column = np.floor(x / width)
    tones = rng.uniform(0.78, 1.12, (int(course.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    factor = tones[course.astype(int), column.astype(int)]
    factor = factor + 0.04 * rng.standard_normal((size, size), dtype=np.float32)
    mortar = (y - course * height < joint) | (x - column * width < joint)
    return _shade(_draw_colour(rng, _WARM), np.where(mortar, np.float32(0.55), factor))


STUFF_TEXTURES = {"sky": sky, "water": water, "grass": grass, "bush": bush, "sand": sand, "brick": brick}


def _ball_shape(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _box_shape(rng: np.random.Generator) -> np.ndarray:
    x, y = 0.85, 0.85 * rng.uniform(0.65, 1.0)
    return np.array([[-x, -y], [x, -y], [x, y], [-x, y]])


def _tent_shape(rng: np.random.Generator) -> np.ndarray:
    x = rng.uniform(0.75, 1.0)
    return np.array([[0, -1.0], [x, 0.75], [-x, 0.75]])


def _star_shape(rng: np.random.Generator) -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.1, 1.1 * rng.uniform(0.42, 0.52))
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


# Corners of a shape of radius about 1: rng -> (num_corners, 2) x, y.
THING_SHAPES = {"ball": _ball_shape, "box": _box_shape, "tent": _tent_shape, "star": _star_shape}


def _thing_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hue = rng.uniform()
    second_hue = (hue + rng.uniform(0.25, 0.75)) % 1
    first = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.65, 1.0)))
    second = 255 * np.array(colorsys.hsv_to_rgb(second_hue, rng.uniform(0.1, 0.6), rng.uniform(0.8, 1.0)))
    return first.astype(np.float32), second.astype(np.float32)


def _mix(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where[..., None], first, second)


def _ball_pattern(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Panels around the centre, lit from the upper left of the shape."""
    panels = np.floor((np.arctan2(v - 0.15, u - 0.1) / (2 * np.pi) + 0.5) * 6).astype(int) % 2 == 0
    light = 1.12 - 0.45 * ((u + 0.35) ** 2 + (v + 0.35) ** 2)
    return _mix(*_thing_colours(rng), panels) * np.clip(light, 0.35, 1.15)[..., None]


def _box_pattern(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Planks with a crossed frame."""
    first, second = _thing_colours(rng)
    frame = (np.abs(u) > 0.66) | (np.abs(u - v) < 0.13)
    planks = 1 - 0.28 * (np.mod(v * 2.4, 1) < 0.22)
    return _mix(second, first, frame) * planks[..., None]


def _tent_pattern(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Stripes that run from the top to the ground."""
    spread = u / np.maximum(v + 1.15, 0.15)
    stripes = np.mod(spread * rng.uniform(3.5, 5.0) + 0.25, 1) < 0.5
    return _mix(*_thing_colours(rng), stripes) * (1.05 - 0.15 * (u > 0))[..., None]


def _star_pattern(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Facets: each ray has a lit and a shaded half, around a dot."""
    first, second = _thing_colours(rng)
    turns = np.mod((np.arctan2(v, u) + np.pi / 2) / (2 * np.pi) * 5, 1)
    facets = np.where(turns < 0.5, np.float32(1.1), np.float32(0.72))
    return _mix(second, first * facets[..., None], u**2 + v**2 < 0.05)


# Pattern of each thing in its own coordinates: (rng, u, v) -> (h, w, 3); the shape's radius is 1.
THING_PATTERNS = {"ball": _ball_pattern, "box": _box_pattern, "tent": _tent_pattern, "star": _star_pattern}
