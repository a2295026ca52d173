"""Read image and label files of any common kind, or say which file cannot be read and why."""

import contextlib
import errno
import functools
import io
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "DECODING_ERRORS",
    "IMAGE_SUFFIXES",
    "WHITE_LEVEL",
    "UnreadableImageError",
    "check_ordinary_image",
    "highest_16_bit_value",
    "read_bytes",
    "read_image",
    "read_label",
]

# Endings (lower case) of the files that count as images when a folder is listed.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Pillow's own line between a large image and a decompression bomb.
MAX_PIXELS = 89_478_485
# Longer strips than this are no photographs, and resizing their short side would need gigabytes.
MAX_ASPECT = 100
# A file of that many pixels, each of three 16-bit numbers, without compression.
MAX_BYTES = 6 * MAX_PIXELS

# The 16-bit value that becomes 255, unless a config says otherwise.
WHITE_LEVEL = 65535

# Pillow knows forty more. Some of them start other programs: EPS starts Ghostscript.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_COLOR_IS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # since 4.11
_COLOR = cv2.IMREAD_COLOR_RGB if _COLOR_IS_RGB else cv2.IMREAD_COLOR

# What Pillow and OpenCV raise on damaged files. Everything else is a fault of the program and passes through.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    RuntimeError,  # of Pillow's AVIF decoder
    struct.error,
    Image.DecompressionBombError,
    cv2.error,
)


class UnreadableImageError(ValueError):
    """A file cannot be read as an image, or not as a label map. The message is one line that names the file."""


def read_image(
    path: str | Path, part: tuple[str, int, int] | None = None, white_level: int = WHITE_LEVEL
) -> np.ndarray:
    """Read an image as the viewer of the file would see it.

    - The EXIF orientation is applied, once.
    - Grey, palette, bilevel and CMYK images become RGB. An alpha channel is dropped, not composited: that is what
      detectron2 and torchvision do, so pretraining and transfer see the same pixels.
    - 16-bit grey and colour are scaled to 8 bit, where Pillow would clip grey to white. What is above the white level
      becomes white.
    - Of an animation the first frame is read.

    Args:
        path: a local file.
        part: the file that holds the image, and the offset and size of it there, in bytes; ``path`` then only names it.
        white_level: value of a 16-bit pixel that becomes 255; 4095 for pictures of 12 bits in 16-bit files.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: it is damaged, no image, no regular file, too large, too narrow, may not be read, or holds
            floating-point or 32-bit integer pixels, whose range nobody knows.
    """
    with _named_errors(path):
        data = read_bytes(path, part)
        image = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else None
        return _decode_any(data, white_level) if image is None else image


def highest_16_bit_value(data: bytes) -> int | None:
    """Return the highest value in a 16-bit image, None for images of other depths, which are not decoded.

    Args:
        data: the file's content.

    Raises:
        any of DECODING_ERRORS: it cannot be read.
    """
    if data[:2] == b"\xff\xd8":  # JPEG
        return None
    with _open(data) as image:
        pixels = _decode_16_bit(image, data)
        return None if pixels is None else int(pixels.max())


def read_label(path: str | Path) -> np.ndarray:
    """Read a label map as the numbers that are in the file; palettes are not looked up.

    Args:
        path: a local file, usually PNG, with one 8-bit channel.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: as in :func:`read_image`, or there is not one 8-bit channel.
    """
    with _named_errors(path), _open(read_bytes(path)) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"a label map needs one 8-bit channel, this file has mode {image.mode}")
        return np.array(image)


def check_ordinary_image(path: str | Path) -> None:
    """Check, without decoding, that a reader which knows none of the rules here will see the right pixels.

    For detectron2's own mapper, which opens pipes and addresses and turns 16-bit images white.

    Args:
        path: a local file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: as in :func:`read_image`, or the pixels have 16 bits.
    """
    with _named_errors(path), _open(read_bytes(path)) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(f"pixels of mode {image.mode} are not read here; convert the file to 8 bit")


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Put the file's name into whatever decoding raises."""
    try:
        yield
    except FileNotFoundError:
        raise  # names the file already
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"cannot read {path}: no image of a known kind") from error
    except DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UnreadableImageError(f"cannot read {path}: {reason.splitlines()[0]}") from error


def read_bytes(path: str | Path, part: tuple[str, int, int] | None = None) -> bytes:
    """Read an image file without decoding it; arguments as of :func:`read_image`.

    Raises:
        OSError, ValueError: it cannot be read, is no regular file, is too large, or has changed since it was indexed.
    """
    if part is not None:
        return _read_part(*part)
    try:
        status = os.stat(path)  # noqa: PTH116  pathlib takes three times as long, for every image
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and Path(path).is_symlink():
            raise ValueError("a link to a file that does not exist") from None
        raise
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size:,} bytes are more than the limit of {MAX_BYTES:,}")
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _read_part(path: str, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,}")
    data = os.pread(_open_part(path).fileno(), size, offset)
    if len(data) != size:
        raise ValueError(f"{path} has changed since its index was made, which has {size:,} bytes at {offset:,}")
    return data


@functools.lru_cache(maxsize=256)  # files that stay open in a process
def _open_part(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)  # noqa: PTH123


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
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOR)  # applies the EXIF orientation
    return image if image is None or _COLOR_IS_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Return height, width and number of components from a JPEG's frame header, or None if there is none.

    Pillow gives the same by ``Image.open``, but then reading an image takes 8 % longer (median of 12 rounds over 1,000
    ImageNet photos of 256 pixels and 31 kB: 295 instead of 272 microseconds; 0.4 % of them are spent here).

    Source: ITU-T T.81, B.1.1 and B.2.2.
    """
    position = 2
    while position + 10 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte before the marker
            position += 1
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # has no length, and no business before the frame
            return None
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not DHT, JPG or DAC
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return (height, width, components) if height and width else None
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _open(data: bytes) -> Image.Image:
    """Open an image of sound kind and size; its pixels are not decoded yet."""
    image = Image.open(io.BytesIO(data))
    if image.format not in _FORMATS:
        raise ValueError(f"{image.format} files are not read; convert it to PNG")
    _check_size(*image.size)
    if image.format == "PNG":
        image.verify()  # the checksums, which decoding ignores
        image = Image.open(io.BytesIO(data))
    return image


def _decode_16_bit(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the pixels (H, W) or (H, W, 3) of a 16-bit image, None for one of another depth."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(ImageOps.exif_transpose(image))
    depth = {"PNG": lambda: data[24], "TIFF": lambda: image.tag_v2.get(258, (0,))[0]}.get(image.format, int)()
    if depth != 16 or image.mode in ("I", "F"):
        return None
    # Of colours Pillow keeps the upper 8 bits only.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return None if pixels is None or pixels.dtype != np.uint16 else pixels[:, :, ::-1]


def _decode_any(data: bytes, white_level: int) -> np.ndarray:
    with _open(data) as image:
        deep = _decode_16_bit(image, data)
        if deep is not None:
            # 65535 = 255 * 257
            pixels = np.rint(np.minimum(deep, white_level).astype(np.float32) / (white_level / 255)).astype(np.uint8)
            return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("F", "I"):
            kind = "floating-point" if image.mode == "F" else "32-bit integer"
            raise ValueError(f"{kind} pixels have no known range; convert the file to 8 or 16 bit")
        if "transparency" in image.info:  # Pillow asks for this step
            image = image.convert("RGBA")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
