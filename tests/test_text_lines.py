import codecs
from collections import Counter

import pytest

from densesiam_d2.data.image_listing import load_image_list
from densesiam_d2.text_lines import counted, listed, read_lines


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_utf8_with_and_without_a_mark(tmp_path, mark):
    (tmp_path / "list.txt").write_bytes(mark + "a.png\r\n\r\nstraße.png".encode())
    assert read_lines(tmp_path / "list.txt") == ["a.png", "", "straße.png"]


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("latin-1", 2), ("utf-16", 1), ("utf-16-le", 1), ("utf-16-be", 1)],  # "utf-16" writes a mark
)
def test_other_encodings_are_refused_with_the_line(tmp_path, encoding, line):
    (tmp_path / "list.txt").write_bytes("a.png\nstraße.png\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"list\.txt, line {line}: not UTF-8"):
        read_lines(tmp_path / "list.txt")


def test_ascii_in_utf16_is_refused_too(tmp_path):
    (tmp_path / "list.txt").write_bytes("a.png\n".encode("utf-16-le"))  # valid UTF-8, with zeros between the letters
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        read_lines(tmp_path / "list.txt")


def test_a_list_of_images_from_windows(tmp_path):
    (tmp_path / "straße.png").write_bytes(b"")
    listing = tmp_path / "list.txt"
    listing.write_bytes(codecs.BOM_UTF8 + "straße.png\r\n".encode())
    assert [record["file_name"] for record in load_image_list(listing)] == [str(tmp_path / "straße.png")]
    listing.write_bytes("straße.png\r\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.txt, line 1: not UTF-8"):
        load_image_list(listing)


def test_listed():
    assert [listed("abc", 3), listed("abcde", 3), listed([])] == ["a, b, c", "a, b, c and 2 more", "none"]
    assert listed(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_counted():
    kinds = Counter({".txt": 2, ".gz\n": 5, "hidden": 1})
    assert counted(kinds) == r"5 .gz\n, 2 .txt, 1 hidden" and counted(kinds, 2) == r"5 .gz\n, 2 .txt"
    assert counted(Counter()) == ""
