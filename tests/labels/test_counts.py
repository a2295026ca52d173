import os

import pytest

from densesiam_d2.labels.counts import CountsWriter


def test_one_row_for_each_image(tmp_path):
    with CountsWriter(tmp_path / "counts.csv", ["cat", 'a "big", dog']) as counts:
        counts.add("town/a.jpg", (20, 30), [2, 1], [10, 5.25])
        counts.add("empty, with a comma.jpg", (4, 5), [0, 0], [0, 0])
    assert (tmp_path / "counts.csv").read_text().splitlines() == [
        'image,width,height,count,area,cat count,cat area,"a ""big"", dog count","a ""big"", dog area"',
        "town/a.jpg,30,20,3,15.2,2,10,1,5.2",
        '"empty, with a comma.jpg",5,4,0,0,0,0,0,0',
    ]


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path):
    with CountsWriter(tmp_path / "counts.csv", ["cat"]) as counts:
        counts.add(os.fsdecode(b"caf\xe9.png"), (4, 5), [0], [0])
    assert (tmp_path / "counts.csv").read_bytes().splitlines()[1] == b"caf\xe9.png,5,4,0,0,0,0"


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), CountsWriter(tmp_path / "counts.csv", ["cat"]):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
