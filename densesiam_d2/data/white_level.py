"""16-bit images that use a small part of their range, and so would be read nearly black."""

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
from detectron2.utils import comm

from .image_io import DECODING_ERRORS, WHITE_LEVEL, highest_16_bit_value, read_bytes

__all__ = ["DARK", "dark_text", "warn_of_dark_images", "white_level_for"]

DARK = 4095  # highest value of 12 bits: images up to it have at most 16 of 256 grey levels
SAMPLE = 50  # images looked at


def white_level_for(highest: int) -> int:
    """Return the highest number of as many bits as ``highest`` has, such as 4095 for 3100."""
    return (1 << max(1, highest.bit_length())) - 1


def dark_text(number: int, highest: int) -> str:
    """Say in one line what is wrong with some 16-bit images, and which key mends it."""
    return (
        f"{number} 16-bit images use values up to {highest} of {WHITE_LEVEL}, which makes them nearly black: set "
        f"INPUT.WHITE_LEVEL {white_level_for(highest)}"
    )


def warn_of_dark_images(records: Sequence[dict], white_level: int, accept: Sequence[str] = ()) -> None:
    """In the main process, look at a few images and warn if all 16-bit ones among them use 12 bits or fewer.

    Args:
        records: of the images, with "file_name" and, in tar files, "file_part".
        white_level: INPUT.WHITE_LEVEL; one that the user has chosen is right.
        accept: DATASETS.ACCEPT; "dark-images" in it says that the images are meant to be dark.
    """
    if white_level != WHITE_LEVEL or "dark-images" in accept or not comm.is_main_process():
        return
    values = []
    for i in np.unique(np.linspace(0, len(records) - 1, SAMPLE).astype(int)).tolist():
        with contextlib.suppress(*DECODING_ERRORS):  # what cannot be read is somebody else's business
            values.append(highest_16_bit_value(read_bytes(records[i]["file_name"], records[i].get("file_part"))))
    deep = [value for value in values if value is not None]
    if deep and max(deep) <= DARK:
        logging.getLogger(__name__).warning(
            "Among %d images looked at, %s [dark-images]", len(values), dark_text(len(deep), max(deep))
        )
