"""Write names on pictures. Unlike OpenCV's, the font has the letters of most European languages."""

import functools
import math

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

__all__ = ["plain", "put_text", "text_width"]

SIZE = 13  # of the letters in pixels


def put_text(canvas: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """Write one line on an image (H, W, 3), uint8 RGB, in place; ``place`` is x and y of its upper left corner."""
    picture = Image.fromarray(canvas)
    ImageDraw.Draw(picture).text(place, text, fill=(30, 30, 30), font=_font())
    canvas[:] = np.asarray(picture)


def plain(text: str) -> str:
    """Return a text as matplotlib must get it, which reads what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


def text_width(text: str) -> int:
    """Return the width of a line in pixels."""
    return math.ceil(_font().getlength(text))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), SIZE)
