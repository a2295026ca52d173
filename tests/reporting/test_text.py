import numpy as np

from densesiam_d2.reporting.text import put_text, text_width


def written(text):
    canvas = np.full((24, 200, 3), 255, np.uint8)
    put_text(canvas, text, (5, 4))
    return canvas


def test_a_line_has_the_width_that_is_told():
    columns = np.flatnonzero((written("Straße") < 128).any(axis=(0, 2)))
    assert 5 <= columns[0] <= 8 and abs(columns[-1] - (5 + text_width("Straße"))) <= 3


def test_letters_of_other_alphabets_are_not_boxes():
    """A font draws the same box for each letter that it lacks."""
    words = ["ß", "é", "ł", "ж", "λ", "\U000f0000"]  # the last is of no alphabet
    assert len({written(word).tobytes() for word in words}) == len(words)
