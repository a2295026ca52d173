"""Image files of every kind that a folder of a million may hold: good ones, odd ones, damaged ones and traps."""

import io
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..data.photos import smooth_image

__all__ = ["Animal", "grey_png", "write_zoo"]

HEIGHT, WIDTH = 48, 64  # of most animals
BOMB = 13000  # pixels a side: 507 MB once decoded


@dataclass(frozen=True)
class Animal:
    """A file, and what reading it must lead to.

    Attributes:
        path: the file.
        pixels: (H, W, 3) uint8 that must be read, or None where reading must be refused.
        tolerance: largest mean difference of the pixels read from those above.
        message: regular expression of the error, after the path.
    """

    path: Path
    pixels: np.ndarray | None = None
    tolerance: float = 0.0
    message: str = ""


def write_zoo(folder: Path) -> list[Animal]:
    """Write the zoo into an empty folder, in about a second; all numbers are the same each time."""
    picture = smooth_image(HEIGHT, WIDTH)
    return [
        *_write_jpegs(folder, picture),
        *_write_other_kinds(folder, picture),
        *_write_odd_pixels(folder, picture),
        *_write_damaged(folder, picture),
        *_write_bombs(folder),
        *_write_strangers(folder),
        *_write_no_files(folder, picture),
    ]


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _reads(path: Path, data: bytes, pixels: np.ndarray, tolerance: float = 0.0) -> Animal:
    path.write_bytes(data)
    return Animal(path, pixels=pixels, tolerance=tolerance)


def _refused(path: Path, data: bytes, message: str) -> Animal:
    path.write_bytes(data)
    return Animal(path, message=message)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _write_jpegs(folder: Path, picture: np.ndarray) -> list[Animal]:
    image = Image.fromarray(picture)
    jpeg = _encode(image, "JPEG", quality=95)
    grey = image.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6  # the viewer turns it clockwise by 90 degrees
    return [
        _reads(folder / "plain.jpg", jpeg, picture, 3),
        _reads(folder / "Ünïcode 图.jpg", jpeg, picture, 3),
        _reads(folder / "jpeg.png", jpeg, picture, 3),
        _reads(folder / "garbage_after_end.jpg", jpeg + b"\0garbage", picture, 3),
        _reads(folder / "progressive.jpg", _encode(image, "JPEG", quality=95, progressive=True), picture, 3),
        _reads(folder / "turned.jpg", _encode(image, "JPEG", quality=95, exif=turned), np.rot90(picture, -1), 3),
        _reads(folder / "grey.jpg", _encode(grey, "JPEG", quality=95), _grey_to_rgb(np.asarray(grey)), 3),
        _reads(folder / "cmyk.jpg", _encode(image.convert("CMYK"), "JPEG", quality=95), picture, 3),
    ]


def _write_other_kinds(folder: Path, picture: np.ndarray) -> list[Animal]:
    image, other = Image.fromarray(picture), Image.fromarray(255 - picture)
    frames = {"save_all": True, "append_images": [other]}
    return [
        _reads(folder / "plain.png", _encode(image, "PNG"), picture),
        _reads(folder / "plain.webp", _encode(image, "WEBP", lossless=True), picture),
        _reads(folder / "plain.bmp", _encode(image, "BMP"), picture),
        _reads(folder / "plain.ppm", _encode(image, "PPM"), picture),
        _reads(folder / "two_pages.tif", _encode(image, "TIFF", **frames), picture),
        _reads(folder / "animation.png", _encode(image, "PNG", **frames), picture),
        _reads(folder / "animation.webp", _encode(image, "WEBP", lossless=True, **frames), picture),
        _reads(folder / "animation.gif", _encode(image, "GIF", **frames), picture, 12),  # 256 colours
    ]


def _write_odd_pixels(folder: Path, picture: np.ndarray) -> list[Animal]:
    image = Image.fromarray(picture)
    alpha = Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8))  # to be dropped, so the colours stay
    grey = np.asarray(image.convert("L"))
    left = np.repeat(np.arange(WIDTH)[None] < 20, HEIGHT, axis=0)
    index = Image.fromarray(left.astype(np.uint8), "L")
    index.putpalette([250, 10, 20, 30, 200, 90])
    two_colors = np.where(left[:, :, None], (30, 200, 90), (250, 10, 20))
    rgb16 = cv2.imencode(".png", picture[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    unknown = "pixels have no known range"
    return [
        _reads(folder / "rgba.png", _encode(Image.merge("RGBA", [*image.split(), alpha]), "PNG"), picture),
        _reads(
            folder / "la.png", _encode(Image.merge("LA", [Image.fromarray(grey), alpha]), "PNG"), _grey_to_rgb(grey)
        ),
        _reads(folder / "palette.png", _encode(index, "PNG"), two_colors),
        _reads(folder / "palette_transparent.png", _encode(index, "PNG", transparency=b"\xff\0"), two_colors),
        _reads(folder / "bilevel.png", _encode(Image.fromarray(left), "PNG"), _grey_to_rgb(left * np.uint8(255))),
        _reads(folder / "rgb16.png", rgb16, picture),
        _reads(
            folder / "grey16.png", _encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), _grey_to_rgb(grey)
        ),
        _reads(folder / "dot.png", _encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[[1, 2, 3]]])),
        _refused(folder / "float.tif", _encode(Image.fromarray(grey / np.float32(255)), "TIFF"), unknown),
        _refused(folder / "int32.tif", _encode(Image.fromarray(grey.astype(np.int32)), "TIFF"), unknown),
        _refused(folder / "row.png", _encode(Image.new("RGB", (10000, 1)), "PNG"), "more than 100 times"),
        _refused(folder / "column.png", _encode(Image.new("RGB", (1, 10000)), "PNG"), "more than 100 times"),
    ]


def _write_damaged(folder: Path, picture: np.ndarray) -> list[Animal]:
    image = Image.fromarray(picture)
    jpeg, png = _encode(image, "JPEG"), _encode(image, "PNG")
    progressive = _encode(image, "JPEG", progressive=True)
    short = "truncated|Truncated|could not create decoder|no image of a known kind"
    cut = {
        "cut_to_10_percent.jpg": jpeg[: len(jpeg) // 10],
        "cut_to_half.jpg": jpeg[: len(jpeg) // 2],
        "cut_by_10_bytes.jpg": jpeg[:-10],
        "cut_to_half_progressive.jpg": progressive[: len(progressive) // 2],
        "cut_to_half.png": png[: len(png) // 2],
        "cut_by_10_bytes.png": png[:-10],
    }
    for kind, options in {"GIF": {}, "WEBP": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}}.items():
        data = _encode(image, kind, **options)
        cut[f"cut_to_half.{kind.lower()}"] = data[: len(data) // 2]
    bad_checksum = bytearray(png)
    bad_checksum[-13] ^= 1  # the last byte of the data's checksum; 12 bytes of IEND follow
    tiff = bytearray(_encode(image, "TIFF"))
    struct.pack_into("<HH", tiff, tiff.index(struct.pack("<HHI", 273, 4, 1)), 273, 11)  # offsets as floating-point
    return [
        *(_refused(folder / name, data, short) for name, data in cut.items()),
        _refused(folder / "bad_checksum.png", bytes(bad_checksum), "broken PNG file"),
        _refused(folder / "lying.png", grey_png(500, 400, zlib.compress(bytes(1000))), "truncated"),
        _refused(folder / "no_pixels.png", png[:33] + png[-12:], "damaged"),  # IHDR and IEND, without IDAT
        _refused(folder / "bad_offset.tif", bytes(tiff), "damaged"),
        _refused(folder / "random_after_start.jpg", b"\xff\xd8" + np.random.default_rng(0).bytes(3000), "known kind"),
    ]


def _write_bombs(folder: Path) -> list[Animal]:
    """Small files with large images in their headers; the PNG even keeps its promise."""
    size = f"{BOMB} x {BOMB} pixels are more than the limit"
    picture = Image.new("RGB", (16, 16))
    jpeg = bytearray(_encode(picture, "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, BOMB, BOMB)
    # A marker without a length, RST0: who takes the next marker, APP0, for its length lands behind the bomb.
    behind = b"\xff\xd8\xff\xd0" + bytes(jpeg[2:-2])
    behind = behind.ljust(4 + 0xFFE0, b"\0") + b"\xff\xc0\0\x11\x08\0\x10\0\x10\x03" + bytes(9) + b"\xff\xd9"
    gif = bytearray(_encode(picture, "GIF"))
    struct.pack_into("<HH", gif, 6, BOMB, BOMB)
    bmp = bytearray(_encode(picture, "BMP"))
    struct.pack_into("<ii", bmp, 18, BOMB, BOMB)
    tiff = bytearray(_encode(picture, "TIFF"))
    for tag in (256, 257):  # width and height, in an entry of tag, type 4 (long) or 3 (short), count 1 and value
        entry = max(tiff.find(struct.pack("<HHI", tag, kind, 1)) for kind in (3, 4))
        struct.pack_into("<HHII", tiff, entry, tag, 4, 1, BOMB)
    webp = bytearray(_encode(picture, "WEBP", lossless=True))
    struct.pack_into("<I", webp, webp.index(b"VP8L") + 9, (BOMB - 1) | (BOMB - 1) << 14)  # 14 bits each
    row = 1 + (BOMB + 7) // 8
    black = zlib.compress(bytes(row * BOMB), 1)
    text = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 1)
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    return [
        _refused(folder / "bomb.jpg", bytes(jpeg), size),
        _refused(folder / "bomb_behind_marker.jpg", behind, size),
        _refused(folder / "bomb.gif", bytes(gif), size),
        _refused(folder / "bomb.bmp", bytes(bmp), size),
        _refused(folder / "bomb.tif", bytes(tiff), size),
        _refused(folder / "bomb.webp", bytes(webp), size),
        _refused(folder / "bomb.ppm", b"P6 %d %d 255\n" % (BOMB, BOMB), size),
        _refused(folder / "bomb.png", grey_png(BOMB, BOMB, black, bits=1), size),
        _refused(folder / "bomb_in_text.png", grey_png(1, 1, zlib.compress(bytes(2)), text=text), "too large"),
        Animal(folder / "huge.jpg", message="bytes are more than the limit"),
    ]


def grey_png(width: int, height: int, data: bytes, bits: int = 8, text: bytes = b"") -> bytes:
    """Return a grey PNG of compressed rows, and perhaps compressed text."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"zTXt", text)] if text else []), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _write_strangers(folder: Path) -> list[Animal]:
    """Files that are no images, under names of images."""
    noise = np.random.default_rng(1).bytes(3000)
    unknown = "no image of a known kind"
    return [
        _refused(folder / "empty.jpg", b"", unknown),
        _refused(folder / "page.jpg", b"<!DOCTYPE html><html>404 Not Found</html>", unknown),
        _refused(folder / "drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', unknown),
        _refused(folder / "noise.jpg", noise, unknown),
        _refused(folder / "program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
    ]


def _write_no_files(folder: Path, picture: np.ndarray) -> list[Animal]:
    """Names of images that lead to other things than files, or to files elsewhere."""
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "link.png").symlink_to("plain.png")
    here = Path.cwd()
    os.chdir(folder)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    os.chdir(here)
    return [
        *(
            Animal(folder / f"{kind}.jpg", message="not a regular file")
            for kind in ("folder", "pipe", "device", "socket")
        ),
        Animal(folder / "dangling.jpg", message="a link to a file that does not exist"),
        Animal(folder / "circle.jpg", message="a link to a file that does not exist"),
        Animal(folder / ("long" * 100 + ".jpg"), message="File name too long"),
        Animal(folder / "plain.png" / "below_a_file.jpg", message="Not a directory"),
        Animal(folder / "link.png", pixels=picture),
    ]
