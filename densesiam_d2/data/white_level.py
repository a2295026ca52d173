"""Warn of 16-bit images that use a small part of their range, because they would be read nearly black."""

import contextlib
import logging
from collections.abc import Sequence

from detectron2.utils import comm

from densesiam_d2.image_io import DECODING_ERRORS, WHITE_LEVEL, highest_16_bit_value, read_bytes
from densesiam_d2.labels.subset import evenly_spaced

__all__ = ["DARK", "dark_text", "warn_of_dark_images", "white_level_for"]

DARK = 4095  # highest value of 12 bits; images up to this value are read with at most 16 of 256 grey levels
SAMPLE = 50  # number of images that are checked


def white_level_for(highest: int) -> int:
    """Return the highest number of as many bits as ``highest`` has, such as 4095 for 3100."""
    return (1 << max(1, highest.bit_length())) - 1


def dark_text(number: int, highest: int) -> str:
    """Return one line that says what is wrong with some 16-bit images, and which key to set."""
    return (
        f"{number} 16-bit images use values up to {highest} of {WHITE_LEVEL}, which makes them nearly black: set "
        f"INPUT.WHITE_LEVEL {white_level_for(highest)}"
    )


def warn_of_dark_images(records: Sequence[dict], white_level: int, accept: Sequence[str] = ()) -> None:
    """In the main process, check a few images and warn if all 16-bit images among them use 12 bits or fewer.

    Args:
        records: records of the images, with "file_name" and, for images in tar files, "file_part".
        white_level: INPUT.WHITE_LEVEL; there is no warning if the user has changed it.
        accept: DATASETS.ACCEPT; "dark-images" in it means that the images are dark on purpose.
    """
    if not len(records) or white_level != WHITE_LEVEL or "dark-images" in accept or not comm.is_main_process():
        return
    values = []
    for record in evenly_spaced(records, SAMPLE):
        with contextlib.suppress(*DECODING_ERRORS):  # the loader reports unreadable files
            values.append(highest_16_bit_value(read_bytes(record["file_name"], record.get("file_part"))))
    deep = [value for value in values if value is not None]
    if deep and max(deep) <= DARK:
        logging.getLogger(__name__).warning(
            "Among %d images looked at, %s [dark-images]", len(values), dark_text(len(deep), max(deep))
        )
