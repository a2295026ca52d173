import os
import re
from pathlib import Path

import pytest

from densesiam_d2.data.record_paths import check_record_paths


def records_of(*names, key="file_name"):
    return [{"file_name": "/data/images/0.jpg", key: name} for name in names]


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name", "pan_seg_file_name"])
@pytest.mark.parametrize("roots", [[], ["/data"]])
@pytest.mark.parametrize(
    "name", ["http://host/1.jpg", "HTTPS://host/1.jpg", "s3://bucket/1.jpg", "/data/http://h/../x"]
)
def test_addresses_are_refused_with_or_without_roots(key, roots, name):
    with pytest.raises(ValueError, match=rf"1 of \d files of a dataset of 2 records are addresses, first {name}: copy"):
        check_record_paths([{"file_name": "/data/images/1.jpg"}, *records_of(name, key=key)], roots)


@pytest.mark.parametrize("name", ["/data/images/../x.jpg", "/etc/passwd", "/data/images2/1.jpg", "../1.jpg", "1.jpg"])
def test_names_that_lead_out_of_the_root_are_refused(name):
    check_record_paths(records_of(name))
    with pytest.raises(ValueError, match=rf"of 1 records lie outside /data/images/, first {re.escape(name)}: write"):
        check_record_paths(records_of(name), ["/data/images"])


@pytest.mark.parametrize("root", ["data", "data/", "./data", Path("data"), "data/../data", "../{here}/data", ""])
@pytest.mark.parametrize("name", ["data/a/1.jpg", "data//a/1.jpg", "data/a/../1..jpg", "{cwd}/data/1.jpg"])
def test_every_spelling_of_a_place_below_counts(tmp_path, monkeypatch, root, name):
    monkeypatch.chdir(tmp_path)
    root = root.format(here=tmp_path.name) if isinstance(root, str) else root
    check_record_paths(records_of(name.format(cwd=tmp_path)), ["/data", root])
    with pytest.raises(ValueError, match=r"lie outside .*, first /etc/passwd"):
        check_record_paths(records_of("/etc/passwd"), ["/data", root])


def test_links_below_a_root_may_lead_anywhere(tmp_path):
    (tmp_path / "disk2").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "disk2")
    check_record_paths([{"file_name": f"{tmp_path}/set/images/1.jpg"}], [tmp_path / "set"])


def test_any_of_several_roots_will_do_and_files_that_are_not_named_do_not_count():
    records = [{"file_name": "/a/1.jpg", "sem_seg_file_name": "/b/1.png"}, {"file_name": Path("/a/2.jpg")}, {"x": 1}]
    check_record_paths([*records, {"file_name": "/a/3.jpg", "sem_seg_file_name": None}], ["/a", "/b"])
    check_record_paths([], ["/a"])
    check_record_paths([{"file_name": "/a/1.jpg"}], ["/"])


def test_no_path_of_a_plain_record_is_normalised(monkeypatch):
    """Which is what would make a million records slow."""
    seen = []
    abspath = os.path.abspath
    monkeypatch.setattr(os.path, "abspath", lambda path: seen.append(path) or abspath(path))
    check_record_paths([{"file_name": f"sets/../data/{i}.jpg"} for i in range(100)], ["sets/../data"])
    assert seen == ["sets/../data/"]
