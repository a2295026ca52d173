import logging

import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data.white_level import warn_of_dark_images, white_level_for


def records_of(folder, *images):
    records = []
    for i, image in enumerate(images):
        records.append({"file_name": str(folder / f"{i}.png")})
        Image.fromarray(image).save(records[-1]["file_name"])
    return records


def test_white_level_is_the_highest_number_of_as_many_bits():
    assert [white_level_for(v) for v in (0, 1, 255, 256, 3100, 4095)] == [1, 1, 255, 511, 4095, 4095]


def test_warns_of_12_bits_and_names_the_value(tmp_path, caplog):
    eight, deep = np.full((4, 5), 200, np.uint8), np.full((4, 5), 700, np.uint16)
    records = records_of(tmp_path, eight, deep, deep * 4)  # 2,800 has 12 bits
    (tmp_path / "torn.png").write_bytes(b"no image")
    records += [{"file_name": str(tmp_path / name)} for name in ("torn.png", "missing.png")]
    with caplog.at_level(logging.WARNING):
        warn_of_dark_images(records, 65535)
    (message,) = caplog.messages
    assert "2 16-bit images use values up to 2800 of 65535" in message
    assert message.endswith("set INPUT.WHITE_LEVEL 4095 [dark-images]")
    caplog.clear()
    warn_of_dark_images(records, 65535, accept=("dark-images",))
    assert not caplog.messages


@pytest.mark.parametrize(("highest", "white_level"), [(5000, 65535), (4095, 4095), (None, 65535)])
def test_says_nothing_where_nothing_is_wrong(tmp_path, caplog, highest, white_level):
    """Values of 13 bits; a level that was chosen; no 16-bit image at all."""
    images = np.full((4, 5), 200, np.uint8) if highest is None else np.full((4, 5), highest, np.uint16)
    with caplog.at_level(logging.WARNING):
        warn_of_dark_images(records_of(tmp_path, images, images), white_level)
    assert not caplog.messages


def test_few_of_many_images_are_looked_at(tmp_path, caplog):
    class Records(list):
        def __getitem__(self, index):
            looked.append(index)
            return super().__getitem__(index)

    looked, records = [], Records(records_of(tmp_path, np.full((4, 5), 9, np.uint16)) * 1000)
    warn_of_dark_images(records, 65535)
    assert len(set(looked)) == 50 and {0, 999} <= set(looked)
