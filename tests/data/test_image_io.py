import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from densesiam_d2.image_io import (
    UnreadableImageError,
    _decode_jpeg,
    displayed_size,
    highest_16_bit_value,
    read_image,
    read_label,
)

from ..faults.zoo import grey_png
from .photos import find_photos, smooth_image

ORIENTATION = 0x0112


def write(path, image, **kwargs):
    image.save(path, **kwargs)
    return path


def test_real_jpegs_equal_pillow():
    for file in find_photos(20):
        with Image.open(file) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(file), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_each_mode(tmp_path, mode):
    path = write(tmp_path / "a.jpg", Image.fromarray(smooth_image(20, 30)).convert(mode), quality=95)
    result = read_image(path)
    assert result.shape == (20, 30, 3) and result.dtype == np.uint8 and result.flags.writeable
    with Image.open(path) as image:
        np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_equals_pillow(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = write(tmp_path / "a.jpg", Image.fromarray(smooth_image(16, 32)), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image(path).flags.c_contiguous and displayed_size(path) == expected.shape[1::-1]


def exif_segment(order, *entries):
    """Return the EXIF segment of a JPEG with entries of (tag, type, count, the four bytes of the value)."""
    data = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    return app1(b"Exif\0\0" + head + data + bytes(4))


def app1(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


XMP = app1(b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
TURNED = exif_segment(">", (ORIENTATION, 3, 1, b"\0\6\0\0"))


@pytest.mark.parametrize("components", [3, 4])  # of four, Pillow reads the pixels
@pytest.mark.parametrize(
    ("segments", "turned"),
    [
        (XMP + TURNED, True),
        (XMP, False),
        (TURNED + exif_segment(">", (ORIENTATION, 3, 1, b"\0\1\0\0")), True),
        (exif_segment(">", (ORIENTATION, 4, 1, b"\0\0\0\6")), True),
        (exif_segment("<", (ORIENTATION, 4, 1, b"\6\0\0\0")), True),
        (exif_segment("<", (ORIENTATION, 1, 1, b"\6\0\0\0")), False),
        (exif_segment("<", (ORIENTATION, 3, 1, b"\x0f\0\0\0")), False),
        (exif_segment(">", (0x010E, 2, 900, b"\0\0\x7f\0"), (ORIENTATION, 3, 1, b"\0\6\0\0")), True),
        (app1(b"Exif\0\0MM\0+" + TURNED[14:]), False),
    ],
    ids=["xmp first", "xmp", "two", "long big", "long little", "byte", "15", "after a damaged entry", "no exif"],
)
def test_unusual_exif_data_of_a_jpeg(tmp_path, segments, turned, components):
    mode = {3: "RGB", 4: "CMYK"}[components]
    data = write(tmp_path / "a.jpg", Image.fromarray(smooth_image(16, 32)).convert(mode)).read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segments + data[2:])
    assert displayed_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[1::-1]
    assert displayed_size(tmp_path / "a.jpg") == ((16, 32) if turned else (32, 16))


def test_palette_bilevel_alpha_and_animation(tmp_path):
    color = Image.new("RGB", (4, 3), (10, 200, 30))
    palette = color.convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.all(read_image(write(tmp_path / "p.png", palette)) == (10, 200, 30))
    assert np.all(read_image(write(tmp_path / "1.png", Image.new("1", (4, 3), 1))) == 255)
    # Alpha is dropped, not composited: the hidden colour is what remains.
    assert np.all(read_image(write(tmp_path / "a.png", Image.new("RGBA", (4, 3), (10, 200, 30, 0)))) == (10, 200, 30))
    frames = [Image.new("L", (4, 3), value) for value in (7, 99)]
    assert np.all(read_image(write(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])) == 7)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 250, 10, 20])
    path = write(tmp_path / "a.png", image, transparency=b"\xff\x00")
    assert np.all(read_image(path) == (250, 10, 20))


def test_16_bit_grey_is_scaled(tmp_path):
    # 65535 / 257 = 255; 32896 / 257 = 128; 300 / 257 = 1.17 -> 1. Clipping would give 255, 255, 255.
    values = np.array([[65535, 32896, 300, 0]], dtype=np.uint16)
    result = read_image(write(tmp_path / "a.png", Image.fromarray(values)))
    np.testing.assert_array_equal(result[0], np.array([[255] * 3, [128] * 3, [1] * 3, [0] * 3]))


def test_white_level(tmp_path):
    # 4095 is 255: 2048 / 4095 * 255 = 127.53 -> 128, 16 / 4095 * 255 = 0.996 -> 1; what is above is white too.
    values = np.array([[4095, 2048, 16, 0, 5000]], dtype=np.uint16)
    path = write(tmp_path / "a.png", Image.fromarray(values))
    assert read_image(path, white_level=4095)[0].tolist() == [[v] * 3 for v in (255, 128, 1, 0, 255)]
    assert highest_16_bit_value(path.read_bytes()) == 5000
    path = write(tmp_path / "b.png", Image.fromarray(np.full((2, 2), 200, np.uint8)))
    assert np.all(read_image(path, white_level=4095) == 200)  # 8-bit images are as they are
    assert highest_16_bit_value(path.read_bytes()) is None


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour(tmp_path, suffix):
    # Red 4095, green 2048, blue 257; Pillow alone would keep 15, 8 and 1.
    bgr = np.full((3, 4, 3), (257, 2048, 4095), np.uint16)
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), bgr)
    image = read_image(path, white_level=4095)
    assert image.flags.writeable and image.flags.c_contiguous
    assert image.reshape(-1, 3).tolist() == [[255, 128, 16]] * 12  # 257 / 4095 * 255 = 16.004
    assert read_image(path)[0, 0].tolist() == [16, 8, 1]  # 4095 / 257 = 15.9, 2048 / 257 = 7.97
    assert highest_16_bit_value(path.read_bytes()) == 4095


def planar_tiff(planes):
    """Return the bytes of a TIFF file of 16-bit colours (3, H, W), each colour in a strip of its own."""
    _, height, width = planes.shape
    tags = {256: (width,), 257: (height,), 258: (16,) * 3, 259: (1,), 262: (2,), 273: (), 277: (3,), 278: (height,)}
    tags |= {279: (planes[0].nbytes,) * 3, 284: (2,)}
    values = 8 + 2 + 12 * len(tags) + 4
    pixels = values + 4 * 3 * 3
    tags[273] = tuple(pixels + i * planes[0].nbytes for i in range(3))
    entries = more = b""
    for tag, numbers in tags.items():
        data = struct.pack(f"<{len(numbers)}I", *numbers)
        place = data if len(numbers) == 1 else struct.pack("<I", values + len(more))
        more += data if len(numbers) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + more + planes.astype("<u2").tobytes()


def test_16_bit_colours_in_planes_are_refused(tmp_path):
    planes = np.stack([np.full((4, 6), value, np.uint16) for value in (60000, 30000, 1000)])
    (tmp_path / "a.tif").write_bytes(planar_tiff(planes))
    with pytest.raises(UnreadableImageError, match=r"a\.tif.*separate planes are not read: write them interleaved"):
        read_image(tmp_path / "a.tif")


def test_16_bit_portable_greymap(tmp_path):
    # 12 bits by its own header: 4095 is white whatever the white level of other files.
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([4095, 2048], ">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[0].tolist() == [[255] * 3, [128] * 3]


def test_16_bit_tiff_whose_zero_is_white(tmp_path):
    path = write(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65535, 257]], np.uint16)))
    data = path.read_bytes()
    one, zero = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))  # PhotometricInterpretation
    assert data.count(one) == 1
    path.write_bytes(data.replace(one, zero))
    assert read_image(path)[0, :, 0].tolist() == [255, 0, 254]
    assert highest_16_bit_value(path.read_bytes()) == 65535


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    path = write(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), dtype)))
    with pytest.raises(ValueError, match=rf"{path}.*no known range"):
        read_image(path)


def damaged_files(folder):
    good = write(folder / "good.jpg", Image.fromarray(smooth_image(64, 64))).read_bytes()
    png = write(folder / "good.png", Image.fromarray(smooth_image(64, 64))).read_bytes()
    yield "half.jpg", good[: len(good) // 2]
    yield "short.jpg", good[:-10]
    yield "half.png", png[: len(png) // 2]
    yield "empty.jpg", b""
    yield "page.jpg", b"<html>404</html>"
    yield "noise.jpg", b"\xff\xd8" + bytes(range(256)) + b"\xff\xd9"


def test_damaged_files_are_named(tmp_path):
    for name, data in damaged_files(tmp_path):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)


def test_jpeg_without_an_end_is_left_to_pillow(tmp_path):
    data = write(tmp_path / "a.jpg", Image.fromarray(smooth_image(64, 64))).read_bytes()
    assert _decode_jpeg(data) is not None and _decode_jpeg(data[:-2]) is None


def test_missing_file_folder_and_pipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match=r"pipe\.jpg.*not a regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_size_limits_come_from_the_header(tmp_path):
    # A valid JPEG whose frame header is changed to 30000 x 30000: nothing is allocated.
    data = bytearray(write(tmp_path / "a.jpg", Image.fromarray(smooth_image(32, 32))).read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.jpg.*30000 x 30000"):
        read_image(tmp_path / "a.jpg")
    assert read_image(write(tmp_path / "dot.png", Image.new("RGB", (1, 1)))).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="one side is more than 100 times the other"):
        read_image(write(tmp_path / "strip.png", Image.new("RGB", (1000, 1))))


def test_name_with_other_letters(tmp_path):
    assert read_image(write(tmp_path / "Ünïcode 图.jpg", Image.fromarray(smooth_image(8, 9)))).shape == (8, 9, 3)


def test_labels_keep_their_numbers(tmp_path):
    label = np.array([[0, 3], [255, 17]], np.uint8)
    np.testing.assert_array_equal(read_label(write(tmp_path / "l.png", Image.fromarray(label))), label)
    indexed = Image.fromarray(label)
    indexed.putpalette(list(range(255, -1, -1)) * 3)  # colours that say something else
    np.testing.assert_array_equal(read_label(write(tmp_path / "p.png", indexed)), label)
    with pytest.raises(ValueError, match=r"rgb\.png.*mode RGB"):
        read_label(write(tmp_path / "rgb.png", Image.new("RGB", (2, 2))))
    bits = Image.fromarray(label > 9)
    assert bits.mode == "1"
    np.testing.assert_array_equal(read_label(write(tmp_path / "bits.png", bits)), [[0, 0], [1, 1]])


def test_labels_with_an_orientation_are_refused(tmp_path):
    """Pixels of the image are turned, and programs differ in whether they turn a label map."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "l.png", exif=exif)
    with pytest.raises(ValueError, match=r"l\.png: a label map must be stored upright"):
        read_label(tmp_path / "l.png")


def test_signed_numbers_of_8_bits_are_refused(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "s.tif", tiffinfo={339: 2})
    for read in (read_image, read_label):
        with pytest.raises(ValueError, match=r"s\.tif: signed integer pixels have no known range"):
            read(tmp_path / "s.tif")


@pytest.mark.parametrize(("bits", "values"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 1, 7, 15]), (8, [0, 3, 85, 255])])
def test_labels_of_few_bits_keep_their_numbers(tmp_path, bits, values):
    size = -(-len(values) * bits // 8)  # bytes
    row = int("".join(f"{value:0{bits}b}" for value in values).ljust(8 * size, "0"), 2).to_bytes(size, "big")
    (tmp_path / "l.png").write_bytes(grey_png(len(values), 1, zlib.compress(b"\0" + row), bits))
    assert read_label(tmp_path / "l.png").tolist() == [values]


def test_labels_of_a_greymap_that_is_stretched_are_refused(tmp_path):
    for highest, row in ((255, b"\0\1\3"), (3, b"\0\1\3")):
        (tmp_path / f"{highest}.png").write_bytes(b"P5 3 1 %d\n" % highest + row)
    assert read_label(tmp_path / "255.png").tolist() == [[0, 1, 3]]
    with pytest.raises(ValueError, match=r"3\.png: .*stretched to 255"):
        read_label(tmp_path / "3.png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_labels_of_kinds_that_change_numbers_are_refused(tmp_path, kind):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "l.png", format=kind)
    with pytest.raises(ValueError, match=rf"l\.png: a label map must not be {kind}, wh.*; write it as PNG"):
        read_label(tmp_path / "l.png")
