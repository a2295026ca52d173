import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data.image_sources import ImageSource


def write_video(path, frames=7, size=(64, 48)):
    """Frame i is grey with the value 30 * i."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    assert video.isOpened()
    for i in range(frames):
        video.write(np.full((size[1], size[0], 3), 30 * i, np.uint8))
    video.release()
    return path


@pytest.mark.parametrize(("every", "numbers"), [(None, range(7)), (1, range(7)), (3, [0, 3, 6]), (99, [0])])
def test_every_nth_frame_of_a_video(tmp_path, every, numbers):
    source = ImageSource(write_video(tmp_path / "clip.avi"), every=every, white_level=65535)
    found = list(source)
    assert source.root is None and source.total == len(found)
    assert [str(name) for name, _ in found] == [f"clip/{i:06d}.jpg" for i in numbers]
    for i, (_, image) in zip(numbers, found, strict=True):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert abs(int(image.mean()) - 30 * i) <= 3  # the codec loses a little


def test_colours_are_rgb(tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    video.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))  # OpenCV: blue, green, red
    video.release()
    ((_, image),) = ImageSource(tmp_path / "red.avi", white_level=65535)
    assert image[..., 0].mean() > 200 and image[..., 2].mean() < 50


def test_one_image(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((5, 6, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((5, 6, 3), np.uint8))
    source = ImageSource(tmp_path / "a.png", white_level=65535)
    assert [(str(name), image.shape) for name, image in source] == [("a.png", (5, 6, 3))]
    assert source.root == tmp_path and source.total == 1


def test_an_image_with_the_ending_of_no_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jfif", format="JPEG", exif=exif)
    source = ImageSource(tmp_path / "a.jfif", white_level=65535)
    assert [(str(name), image.shape) for name, image in source] == [("a.jfif", (96, 64, 3))]


def test_files_of_several_pages_are_counted(tmp_path):
    pages = [Image.new("L", (6, 5), value) for value in (10, 20)]
    pages[0].save(tmp_path / "one.tif")
    for name in ("two.tif", "moving.gif", "moving.webp", "moving.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    source = ImageSource(tmp_path, white_level=65535)
    assert all(abs(int(image[0, 0, 0]) - 10) < 3 for _, image in source) and source.total == 5
    (line,) = source.left_out()
    assert line == f"files of which the first page or frame alone was read: 4, such as {tmp_path}/moving.gif"


def test_a_cut_animation_is_read_to_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((48, 64), value, np.uint8)) for value in (10, 20)]
    frames[0].save(tmp_path / "cut.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(data[: data.rindex(b"!\xf9") + 12])  # within the second frame's header
    source = ImageSource(tmp_path, white_level=65535)
    assert len(list(source)) == 1 and source.left_out()[0].endswith(f"1, such as {tmp_path}/cut.gif")


def test_mistakes(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (tmp_path / "none").mkdir()
    avi = write_video(tmp_path / "clip.avi")
    latin = avi.with_name(os.fsdecode(b"caf\xe9.avi"))
    latin.write_bytes(avi.read_bytes())
    for path, every, error, message in (
        (tmp_path / "gone", None, FileNotFoundError, "--input .*gone: no such folder or file"),
        (tmp_path / "clip.mp4", None, ValueError, r"--input .*clip\.mp4 is neither an image .* nor a readable video"),
        (tmp_path / "empty.mp4", None, ValueError, r"empty\.mp4 is neither an image"),
        (latin, None, ValueError, "opens no video whose path is not UTF-8: rename it"),
        (avi, 0, ValueError, "--every 0 must be at least 1"),
        (tmp_path / "none", 2, ValueError, "--every 2 is for videos, but --input .*none is not a video"),
        (tmp_path / "none", None, FileNotFoundError, r"no readable image in it \(endings"),
        (tmp_path / "torn.jpg", None, FileNotFoundError, r"no readable image in it \(cannot read .*torn\.jpg"),
    ):
        with pytest.raises(error, match=message):
            list(ImageSource(path, every=every, white_level=65535))


def test_several_images(tmp_path):
    (tmp_path / "town").mkdir()
    for name in ("b.png", "town/a.JPG", "c.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    paths = [tmp_path / "town" / "a.JPG", tmp_path / "b.png"]
    source = ImageSource(*paths, white_level=65535)
    assert (source.root, source.total) == (tmp_path, 2)
    assert [str(name) for name, _ in source] == ["town/a.JPG", "b.png"]
    (tmp_path / "list.txt").write_text("b.png")
    for other in ("town", "list.txt"):
        with pytest.raises(ValueError, match=f"--input .*{other} is no image: several names must all be images"):
            ImageSource(*paths, tmp_path / other, white_level=65535)
    with pytest.raises(FileNotFoundError, match=r"--input .*d\.png: no such folder or file"):
        ImageSource(*paths, tmp_path / "d.png", white_level=65535)


@pytest.mark.parametrize(("every", "lost"), [(None, "4 of about 7"), (2, "2 of about 4")])
def test_frames_that_a_cut_video_lacks_are_counted(tmp_path, every, lost):
    """Cut where the fourth of seven frames begins; the header still says seven."""
    data = write_video(tmp_path / "clip.avi").read_bytes()
    starts = [found.start() for found in re.finditer(rb"00dc", data) if found.start() > data.index(b"movi")]
    (tmp_path / "cut.avi").write_bytes(data[: starts[3]])
    source = ImageSource(tmp_path / "cut.avi", every=every, white_level=65535)
    assert [str(name) for name, _ in source] == [f"cut/{i:06d}.jpg" for i in range(0, 3, every or 1)]
    assert source.left_out()[1:] == [
        f"{tmp_path}/cut.avi: {lost} frames could not be read; reading ended after frame 000002"
    ]


def test_a_whole_video_lacks_nothing(tmp_path):
    source = ImageSource(write_video(tmp_path / "clip.avi"), every=2, white_level=65535)
    assert len(list(source)) == 4 and source.left_out() == []


def test_a_video_without_frames(tmp_path):
    """The headers of an AVI, cut before the first frame."""
    data = write_video(tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises((FileNotFoundError, ValueError), match=r"cut\.avi.*(no frame|nor a readable video)"):
        list(ImageSource(tmp_path / "cut.avi", white_level=65535))


def test_12_bit_images_are_warned_of(tmp_path, caplog):
    Image.fromarray(np.full((4, 5), 2800, np.uint16)).save(tmp_path / "deep.png")
    ImageSource(tmp_path, white_level=65535)
    (message,) = caplog.messages
    assert message.endswith("set INPUT.WHITE_LEVEL 4095 [dark-images]")


def test_a_file_that_is_removed_meanwhile_is_named(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    source = ImageSource(tmp_path, white_level=65535)
    names = []
    for name, _ in source:
        names.append(name.name)
        (tmp_path / "b.png").unlink(missing_ok=True)
    assert names == ["a.png"] and "b.png" in source.unreadable[0]
