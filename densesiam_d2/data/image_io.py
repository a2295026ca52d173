"""Read image and label files of any common kind, or say which file cannot be read and why."""

import contextlib
import io
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["IMAGE_SUFFIXES", "read_image", "read_label"]

# Endings (lower case) of the files that count as images when a folder is listed.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Pillow's own line between a large image and a decompression bomb.
MAX_PIXELS = 89_478_485
# Longer strips than this are no photographs, and resizing their short side would need gigabytes.
MAX_ASPECT = 100

# What Pillow and OpenCV raise on damaged files. Everything else is a fault of the program and passes through.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    cv2.error,
)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as the viewer of the file would see it.

    - The EXIF orientation is applied, once.
    - Grey, palette, bilevel and CMYK images become RGB. An alpha channel is dropped, not composited: that is what
      detectron2 and torchvision do, so pretraining and transfer see the same pixels.
    - 16-bit grey is scaled to 8 bit, where Pillow would clip it to white.
    - Of an animation the first frame is read.

    Args:
        path: a local file.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no image, is too large, or holds floating-point or 32-bit integer pixels,
            whose range nobody knows. The message names the file.
    """
    with _named_errors(path):
        data = _read_bytes(path)
        image = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else None
        return _decode_any(data) if image is None else image


def read_label(path: str | Path) -> np.ndarray:
    """Read a label map as the numbers that are in the file; palettes are not looked up.

    Args:
        path: a local file, usually PNG, with one 8-bit channel.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not one 8-bit channel. The message names the file.
    """
    with _named_errors(path), Image.open(io.BytesIO(_read_bytes(path))) as image:
        _check_size(*image.size)
        if image.mode not in ("L", "P"):
            raise ValueError(f"a label map needs one 8-bit channel, this file has mode {image.mode}")
        return np.array(image)


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Put the file's name into whatever decoding raises."""
    try:
        yield
    except FileNotFoundError:
        raise  # names the file already
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read {path}: no image of a known kind") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"cannot read {path}: {error or type(error).__name__}") from error


def _read_bytes(path: str | Path) -> bytes:
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
    return path.read_bytes()


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode the usual JPEG with OpenCV: the pixels of Pillow in four fifths of the time.

    Returns:
        (H, W, 3) uint8, or None where Pillow must decide: CMYK, and files without an end marker, whose missing part
        some versions of OpenCV silently make up.
    """
    size = _jpeg_size(data)
    if size is None or not data.endswith(b"\xff\xd9"):
        return None
    height, width, components = size
    _check_size(width, height)
    if components not in (1, 3):
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # applies the EXIF orientation
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Return height, width and number of components from a JPEG's frame header, or None if there is none.

    Source: ITU-T T.81, B.1.1 and B.2.2.
    """
    position = 2
    while position + 10 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte before the marker
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not DHT, JPG or DAC
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return (height, width, components) if height and width else None
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _decode_any(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        is_png = image.format == "PNG"
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
            grey = np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)  # 65535 = 255 * 257
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode in ("F", "I"):
            kind = "floating-point" if image.mode == "F" else "32-bit integer"
            raise ValueError(f"{kind} pixels have no known range; convert the file to 8 or 16 bit")
        if "transparency" in image.info:  # Pillow asks for this step
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
