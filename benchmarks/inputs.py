"""JPEG files to measure with: somebody's own, or photographs that travel inside Python packages."""

import random
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.harness import Options
from densesiam_d2.data.image_listing import load_image_folder
from densesiam_d2.samples.photos import write_photos

__all__ = ["jpeg_files"]


def jpeg_files(options: Options, count: int, *, width: int = 500, height: int = 375, kilobytes: int = 90) -> list[str]:
    """Return files of about one size in bytes and pixels, in the order of a seeded shuffle.

    Args:
        options: with ``images``, that folder's files as they are.
        count: number of files at most.
        width, height: of the pieces cut from the bundled photographs.
        kilobytes: mean size to which the JPEG quality is set; ImageNet's files have about 110, COCO's 160.

    Returns:
        Names of files.
    """
    if options.images:
        names = [record["file_name"] for record in load_image_folder(options.images)]
        random.Random(0).shuffle(names)
        return names[:count]
    root = Path(tempfile.gettempdir()) / "densesiam_d2_benchmarks"
    folder = root / f"{width}x{height}_{kilobytes}kB_{count}"
    if not folder.is_dir():
        pieces = _pieces(write_photos(root / "photos"), count, width, height)
        # Bytes grow with the quality: halve the range of qualities.
        low, high = 30, 100
        while high - low > 1:
            middle = (low + high) // 2
            mean = np.mean([len(_encode(piece, middle)) for piece in pieces[:30]])
            low, high = (middle, high) if mean < 1000 * kilobytes else (low, middle)
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for i, piece in enumerate(pieces):
            (partial / f"{i:05}.jpg").write_bytes(_encode(piece, low))
        partial.rename(folder)
    return sorted(map(str, folder.glob("*.jpg")))


def _encode(image: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _pieces(photos: Path, count: int, width: int, height: int) -> list[np.ndarray]:
    """Cut (height, width) pieces, half of them upright, with the noise of a sensor (2 grey levels)."""
    images = [cv2.imread(str(path)) for path in sorted(photos.glob("*.jpg"))]
    images = [image for image in images if np.ptp(image, axis=2).mean() > 3]  # without the grey ones
    draw = np.random.default_rng(0)
    pieces = []
    for i in range(count):
        image, (w, h) = images[i % len(images)], (width, height) if i % 2 else (height, width)
        scale = max(w / image.shape[1], h / image.shape[0]) * draw.uniform(1.0, 1.3)
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        )
        y, x = draw.integers(image.shape[0] - h + 1), draw.integers(image.shape[1] - w + 1)
        piece = image[y : y + h, x : x + w] + draw.normal(0, 2, (h, w, 3))
        pieces.append(np.clip(piece, 0, 255).astype(np.uint8))
    return pieces
