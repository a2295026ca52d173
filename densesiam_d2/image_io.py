"""Read image and label files of any common kind, or say which file cannot be read and why."""

import contextlib
import errno
import functools
import io
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "DECODING_ERRORS",
    "IMAGE_SUFFIXES",
    "JPEG_SIDE",
    "WHITE_LEVEL",
    "UnreadableImageError",
    "displayed_size",
    "has_more_pages",
    "highest_16_bit_value",
    "label_table",
    "read_bytes",
    "read_image",
    "read_label",
    "read_label_and_palette",
]

JPEG_SIDE = 65_500  # pixels, the longest that libjpeg writes
# Endings (in lower case) of the files that are taken for images when a folder is listed.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Largest number of pixels of an image. Pillow has the same limit, above which it warns of a decompression bomb.
MAX_PIXELS = 89_478_485
# Largest ratio of the two sides. Images with a larger ratio are not photographs, and resizing their short side would
# need gigabytes.
MAX_ASPECT = 100
# Largest size of a file: MAX_PIXELS pixels, each of three 16-bit numbers, without compression.
MAX_BYTES = 6 * MAX_PIXELS

# The 16-bit value that becomes 255, unless a config sets another one.
WHITE_LEVEL = 65535

# The formats that are read. Pillow reads forty more, but some of those start other programs: EPS starts Ghostscript.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")

_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # after that, the way in which cv2.flip turns each upright
# EXIF data of nothing but an orientation, which is the one after them, and six zeros more.
_ORIENTATION = b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0"

_COLOR_IS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # since 4.11
_COLOR = (cv2.IMREAD_COLOR_RGB if _COLOR_IS_RGB else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION

# What Pillow's readers of tags and chunks raise on damaged files, with a text that says little.
_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError)

# The exceptions that Pillow and OpenCV raise on damaged files. All other exceptions are bugs and are not caught.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    RuntimeError,  # raised by Pillow's AVIF decoder
    *_FAULTS,
    struct.error,
    Image.DecompressionBombError,
    cv2.error,
)


class UnreadableImageError(ValueError):
    """A file cannot be read as an image or as a label map. The message is one line that names the file."""


def read_image(
    path: str | Path, part: tuple[str, int, int] | None = None, white_level: int = WHITE_LEVEL
) -> np.ndarray:
    """Read an image as an image viewer shows it.

    - The EXIF orientation is applied, once; an orientation in XMP data is not.
    - Grey, palette, bilevel and CMYK images become RGB. An alpha channel is dropped, not composited: that is what
      detectron2 and torchvision do, so pretraining and transfer see the same pixels.
    - 16-bit grey and colour images are scaled to 8 bit; Pillow alone would clip 16-bit grey to white. Values above the
      white level become white.
    - Only the first frame of an animation, or page of a TIFF file, is read.

    Args:
        path: a local file.
        part: the file that contains the image, and the offset and size of the image in that file, in bytes. ``path`` is
            then used in error messages only.
        white_level: value of a 16-bit pixel that becomes 255; 4095 for pictures of 12 bits in 16-bit files.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: the file is damaged, not an image, not a regular file, too large, too narrow, not allowed
            to be read, or has floating-point, signed or 32-bit integer pixels, whose range is unknown.
    """
    with _named_errors(path):
        data = read_bytes(path, part)
        image = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else None
        return _decode_any(data, white_level) if image is None else image


def highest_16_bit_value(data: bytes) -> int | None:
    """Return the highest value in a 16-bit image, or None for images of other depths, which are not decoded.

    Args:
        data: the file's content.

    Raises:
        any of DECODING_ERRORS: the image cannot be read.
    """
    if data[:2] == b"\xff\xd8":  # JPEG
        return None
    with _open(data) as image:
        pixels = _decode_16_bit(image, data)
        return None if pixels is None else int(pixels.max())


def has_more_pages(image: Image.Image) -> bool:
    """Tell whether an open image has several pages, as microscopes and scanners write them, or frames (animations).

    The second picture of a phone's JPEG file, such as a depth map, is no page.
    """
    try:
        return image.format in ("TIFF", "GIF", "WEBP", "PNG") and image.is_animated
    except DECODING_ERRORS:  # what follows the first one is damaged
        return True


def read_label(path: str | Path) -> np.ndarray:
    """Read a label map as the numbers that are stored in the file; a palette is not applied.

    Args:
        path: a local file, usually PNG, with one channel of up to 8 bits. Those of 1, 2 or 4 bits give 0 to 1, 3 or 15.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: as in :func:`read_image`, or the file does not have exactly one 8-bit channel, or is of a
            kind that stores other numbers than were given, as JPEG does.
    """
    return read_label_and_palette(path)[0]


def label_table(label_map: Sequence[int] | None) -> np.ndarray | None:
    """Return the "label_map" of a data set's metadata as (256,) uint8, for ``cv2.LUT``; None stays None.

    Args:
        label_map: 256 numbers, the class or the ignored value of each raw value.

    Raises:
        ValueError: they are not 256 numbers in [0, 255].
    """
    if label_map is None:
        return None
    if len(label_map) != 256 or min(label_map) < 0 or max(label_map) > 255:
        raise ValueError(f"label_map needs 256 numbers in [0, 255], got {len(label_map)}")
    return np.array(label_map, np.uint8)


def read_label_and_palette(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a label map as :func:`read_label`, and the colours (n, 3) of its first values, None without a palette."""
    with _named_errors(path):
        data = read_bytes(path)
        with _open(data) as image:
            _check_label(image)
            label = np.array(image, dtype=np.uint8)
            if image.mode == "L" and (depth := _depth(image, data)) in (2, 4):
                label //= 255 // (2**depth - 1)  # Pillow stretches grey values to 255
            return label, np.array(image.getpalette()).reshape(-1, 3) if image.mode == "P" else None


def _check_label(image: Image.Image) -> None:
    if image.format == "PPM" and image.tile[0][0] != "raw":
        raise ValueError("a PGM file may hold numbers that are stretched to 255; write the label map as PNG")
    if image.format in _LOSSY:
        raise ValueError(f"a label map must not be {image.format}, which changes the numbers; write it as PNG")
    if image.format == "GIF":
        raise ValueError("a label map must not be GIF, whose writers number the colours anew; write it as PNG")
    if image.getexif().get(0x0112, 1) in range(2, 9):
        raise ValueError("a label map must be stored upright, without an EXIF orientation, which not all programs read")
    if image.mode not in ("1", "L", "P"):
        raise ValueError(f"a label map needs one 8-bit channel, this file has mode {image.mode}")


def displayed_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of an image as :func:`read_image` returns it, from the header alone.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: the header shows that :func:`read_image` will refuse the file.
    """
    with _named_errors(path), _open_regular(path) as file, Image.open(io.BufferedReader(file)) as image:
        _check_header(image)
        _set_orientation(image)
        # Some versions of Pillow turn TIFF files when they open them, others when they decode them.
        width, height = (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size
        return (height, width) if image.getexif().get(0x0112) in _ROTATED else (width, height)


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Turn any error of reading or decoding into an UnreadableImageError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise  # names the file already
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"cannot read {path}: no image of a known kind") from error
    except DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        if isinstance(error, _FAULTS):
            reason = f"damaged ({type(error).__name__}: {reason})"
        raise UnreadableImageError(f"cannot read {path}: {reason.splitlines()[0]}") from error


def read_bytes(path: str | Path, part: tuple[str, int, int] | None = None) -> bytes:
    """Read an image file without decoding it; the arguments are those of :func:`read_image`.

    Raises:
        OSError, ValueError: the file cannot be read, is not regular, is too large, or has changed since it was indexed.
    """
    if part is not None:
        return _read_part(*part)
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,}")
        return file.readall()


def _open_regular(path: str | Path) -> io.FileIO:
    try:
        file = open(path, "rb", buffering=0, opener=_open_without_waiting)  # noqa: SIM115  a buffer takes longer
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and Path(path).is_symlink():
            raise ValueError("a link to a file that does not exist") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a socket, a folder
            raise ValueError("not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("not a regular file")
    return file


def _open_without_waiting(path: str | Path, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait forever


def _read_part(path: str, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,}")
    data = os.pread(_open_part(path).fileno(), size, offset)
    if len(data) != size:
        raise ValueError(f"{path} has changed since its index was made, which has {size:,} bytes at {offset:,}")
    return data


@functools.lru_cache(maxsize=256)  # number of files that stay open in each process
def _open_part(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)  # noqa: PTH123


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode an ordinary JPEG with OpenCV, which gives the same pixels as Pillow in four fifths of the time.

    Returns:
        (H, W, 3) uint8, or None for files that Pillow must read: CMYK images, and files without an end marker, because
        some versions of OpenCV fill in the missing part without an error.
    """
    header = _jpeg_header(data)
    if header is None or not data.endswith(b"\xff\xd9"):
        return None
    height, width, components, exif = header
    _check_size(width, height)
    if components not in (1, 3):
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOR)
    if image is None:
        return None
    image = image if _COLOR_IS_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    orientation = _exif_orientation(exif)
    if orientation in _ROTATED:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation that a JPEG's EXIF data name, 1 (upright) if they name none.

    OpenCV, Pillow and their versions read unusual data differently: other types of number, damage, several segments.
    """
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    def number(position: int, size: int) -> int:
        return int.from_bytes(exif[position : position + size], order)

    first = number(4, 4) + 2
    for entry in range(first, first + 12 * number(first - 2, 2), 12):  # tag, type, count, value
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, {3: 2, 4: 4}.get(number(entry + 2, 2), 0))
            return value if 1 <= value <= 8 else 1
    return 1


def _jpeg_header(data: bytes) -> tuple[int, int, int, bytes] | None:
    """Return height, width, number of components and EXIF data from a JPEG's header, or None if it has no frame.

    Pillow's ``Image.open`` gives the same, but reading an image then takes 8 % longer (median of 12 rounds over 1,000
    ImageNet photos of 256 pixels and 31 kB: 295 instead of 272 microseconds; this function takes 0.4 % of the 272).

    Source: ITU-T T.81, B.1.1 and B.2.2.
    """
    position, exif = 2, b""
    while position + 10 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte before the marker
            position += 1
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # has no length, and is not allowed before the frame
            return None
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not DHT, JPG or DAC
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return (height, width, components, exif) if height and width else None
        else:
            end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
            if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
                exif += data[position + 10 : end]
            position = end
    return None


def _open(data: bytes) -> Image.Image:
    """Open an image and check its format and size; its pixels are not decoded yet."""
    image = Image.open(io.BytesIO(data))
    if image.format == "PNG":
        image.verify()  # checks the checksums, which decoding ignores
        image = Image.open(io.BytesIO(data))
    _check_header(image)
    _set_orientation(image)
    return image


def _check_header(image: Image.Image) -> None:
    """Check the format and the size of an image."""
    if image.format not in _FORMATS:
        raise ValueError(f"{image.format} files are not read; convert it to PNG")
    if image.format == "TIFF" and 2 in image.tag_v2.get(339, ()):
        raise ValueError("signed integer pixels have no known range; convert the file to unsigned 8 or 16 bit")
    _check_size(*image.size)


def _set_orientation(image: Image.Image) -> None:
    """Give an image the orientation that :func:`_decode_jpeg` takes, so that Pillow turns it in the same way."""
    for key in ("xmp", "XML:com.adobe.xmp"):  # orientations there are left alone
        image.info.pop(key, None)
    if image.format in ("JPEG", "MPO"):
        orientation = _exif_orientation(image.info.get("exif", b"")[6:])
        image.info["exif"] = _ORIENTATION + bytes([orientation]) + bytes(6)
        image.getexif().load(image.info["exif"])  # it may have been loaded when the file was opened


def _depth(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel of a PNG or TIFF file, 0 for other kinds."""
    return {"PNG": lambda: data[24], "TIFF": lambda: image.tag_v2.get(258, (0,))[0]}.get(image.format, int)()


def _decode_16_bit(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the pixels (H, W) or (H, W, 3) of a 16-bit image, or None for an image of another depth."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(ImageOps.exif_transpose(image))
        white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0
        return ~pixels if white_is_zero else pixels
    if _depth(image, data) != 16 or image.mode in ("I", "F"):
        return None
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and image.tag_v2.get(277, 1) > 1:  # else one plane is read
        raise ValueError("16-bit colours in separate planes are not read: write them interleaved")
    # OpenCV decodes 16-bit colours, because Pillow keeps only their upper 8 bits.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return None if pixels is None or pixels.dtype != np.uint16 else pixels[:, :, ::-1]


def _decode_any(data: bytes, white_level: int) -> np.ndarray:
    with _open(data) as image:
        deep = _decode_16_bit(image, data)
        if deep is not None:
            # With the default white level the divisor is the whole number 257, as 65535 = 255 * 257.
            pixels = np.rint(np.minimum(deep, white_level).astype(np.float32) / (white_level / 255)).astype(np.uint8)
            return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("F", "I"):
            kind = "floating-point" if image.mode == "F" else "signed or 32-bit integer"
            raise ValueError(f"{kind} pixels have no known range; convert the file to unsigned 8 or 16 bit")
        if "transparency" in image.info:  # Pillow warns if this step is left out
            image = image.convert("RGBA")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
