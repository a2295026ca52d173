import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from densesiam_d2 import image_io
from densesiam_d2.data import UnreadableImageError, read_image, read_label
from densesiam_d2.image_io import displayed_size

from .zoo import write_zoo

# Reads the files of a list in a fresh process; prints the seconds, and the MB beyond those in use before. (getrusage
# would start at the high-water mark of the parent.)
READ_ALL = r"""
import re, sys, time
from pathlib import Path
from densesiam_d2.data import UnreadableImageError, read_image

def memory(key):
    return int(re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before, start = memory("VmRSS"), time.perf_counter()
for path in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    try:
        read_image(path)
    except UnreadableImageError:
        pass
print(time.perf_counter() - start, memory("VmHWM") - before)
"""

with tempfile.TemporaryDirectory() as folder:
    NAMES = [animal.path.name for animal in write_zoo(Path(folder))]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return {animal.path.name: animal for animal in write_zoo(tmp_path_factory.mktemp("zoo"))}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
def test_each_is_read_or_refused_by_name(zoo, name):
    animal = zoo[name]
    if animal.pixels is None:
        with pytest.raises(UnreadableImageError, match=animal.message) as caught:
            read_image(animal.path)
        assert str(caught.value).startswith(f"cannot read {animal.path}: ") and "\n" not in str(caught.value)
        with pytest.raises(UnreadableImageError, match=re.escape(str(animal.path))):
            read_label(animal.path)
    else:
        image = read_image(animal.path)
        assert image.shape == animal.pixels.shape and image.dtype == np.uint8
        assert image.flags.c_contiguous and image.flags.writeable
        assert np.abs(image - animal.pixels.astype(float)).mean() <= animal.tolerance


def test_all_in_little_time_and_memory(zoo, tmp_path):
    (tmp_path / "zoo.txt").write_text("\n".join(str(animal.path) for animal in zoo.values()), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-c", READ_ALL, str(tmp_path / "zoo.txt")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    seconds, megabytes = map(float, output.split())
    assert seconds < 20 and megabytes < 300


def test_a_missing_file_is_another_error(tmp_path):
    for read in (read_image, read_label):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
            read(tmp_path / "nowhere.jpg")


def test_a_forbidden_file_is_named(zoo, monkeypatch):
    def refuse(path, *mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_io.os, "open", refuse)  # root may read whatever chmod forbids
    with pytest.raises(UnreadableImageError, match=r"cannot read .*plain\.png: Permission denied$"):
        read_image(zoo["plain.png"].path)


def test_errors_of_the_program_pass_through(zoo, monkeypatch):
    def fail(data, white_level):
        raise NameError("a fault of the program")

    monkeypatch.setattr(image_io, "_decode_any", fail)
    with pytest.raises(NameError, match="a fault of the program"):
        read_image(zoo["plain.png"].path)


@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_bytes_that_are_changed_at_random(zoo, tmp_path):
    """Each file is read or refused by its name, and the header says the size that is read."""
    kinds = ("turned.jpg", "cmyk.jpg", "plain.webp", "plain.ppm", "two_pages.tif", "animation.gif", "float.tif")
    rng, path = np.random.default_rng(0), tmp_path / "changed"
    for number in range(700):
        data = bytearray(zoo[kinds[number % len(kinds)]].path.read_bytes())
        start = rng.choice([0, max(0, len(data) - 250)])  # headers are at the start, in TIFF files at the end
        for place in rng.integers(start, min(start + 250, len(data)), size=2):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        sizes = set()
        for read in (read_label, displayed_size, lambda path: read_image(path).shape[1::-1]):
            try:
                value = read(path)
            except UnreadableImageError as error:
                assert str(error).startswith(f"cannot read {path}: "), number
            else:
                sizes |= {value} if isinstance(value, tuple) else set()
        assert len(sizes) < 2, number
