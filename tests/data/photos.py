"""Real photographs for tests, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(os.getenv("DENSESIAM_D2_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def find_photos(number: int) -> list[Path]:
    files = sorted((ROOT / "imagenet-sample").glob("*/*.JPEG"))[:number]
    if len(files) < number:
        pytest.skip(f"no real photographs in {ROOT}; set DENSESIAM_D2_TEST_DATA")
    return files


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours that vary slowly, so that resampling changes little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(9, 30) + y / rng.uniform(9, 30) + rng.uniform(0, 6)) for _ in range(3)]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)
