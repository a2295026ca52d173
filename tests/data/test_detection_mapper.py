import os

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from PIL import Image

from densesiam_d2.data.detection_mapper import DetectionDatasetMapper
from densesiam_d2.data.image_io import UnreadableImageError


@pytest.fixture
def mapper():
    return DetectionDatasetMapper(get_cfg(), is_train=False)


def test_ordinary_images_are_mapped_as_detectron2_does(mapper, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 20, "width": 30}
    expected = DatasetMapper(get_cfg(), is_train=False)(dict(record))
    assert (mapper(dict(record))["image"] == expected["image"]).all()


def test_16_bit_images_are_refused(mapper, tmp_path):
    Image.fromarray(np.full((20, 30), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UnreadableImageError, match=r"deep\.png: pixels of mode I;16 .* convert the file to 8 bit"):
        mapper({"file_name": str(tmp_path / "deep.png")})


def test_pipes_are_refused(mapper, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match=r"pipe\.jpg: not a regular file"):
        mapper({"file_name": str(tmp_path / "pipe.jpg")})


def test_addresses_are_not_fetched(mapper):
    with pytest.raises(FileNotFoundError, match=r"http:"):
        mapper({"file_name": "http://127.0.0.1:9/a.jpg"})
