import hashlib
import json

import numpy as np
import pytest

from densesiam_d2.labels import IGNORE
from densesiam_d2.labels.cluster_names import ClusterNames, file_sha256, majority_names

SHA = "ab" * 32


def write(path, names, **other):
    path.write_text(json.dumps({"checkpoint_sha256": SHA, "num_clusters": len(names), "names": names, **other}))
    return path


def test_names_that_are_shared_ignored_and_missing(tmp_path):
    """Clusters 0 and 3 are the class road; sorted, road is 0 and tree 1. "Ignore" and no name become 255."""
    file = write(tmp_path / "names.json", ["road", "tree", " Ignore", "  road ", None, " "])
    names = ClusterNames.read(file, SHA, 6)
    assert names.names == ("road", "tree", "ignore", "road", None, None)
    assert names.classes == ["road", "tree"]
    assert names.table.dtype == np.uint8
    assert names.table.tolist() == [0, 1, IGNORE, 0, IGNORE, IGNORE]


def test_written_and_read_back(tmp_path):
    names = ClusterNames(("Straße", None, "ignore"), SHA)
    names.write(tmp_path / "names.json")
    assert ClusterNames.read(tmp_path / "names.json", SHA, 3) == names


def test_sha256_of_a_file(tmp_path):
    data = b"x" * (2 << 20) + b"y"  # more than one block
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"names\.json is no names\.json of a gallery"),
        ('{"names": ["a"]}', r"is no names\.json of a gallery \(KeyError: 'checkpoint_sha256'\)"),
        (json.dumps({"checkpoint_sha256": SHA, "names": [1], "num_clusters": 1}), r"'names' is no list of strings"),
        (json.dumps({"checkpoint_sha256": SHA, "names": ["a"]}), r"is no names\.json of a gallery \(KeyError: 'num_cl"),
        ("[]", r"is no names\.json of a gallery"),
        (
            json.dumps({"checkpoint_sha256": "cd" * 32, "names": ["a"], "num_clusters": 1}),
            r"another checkpoint \(sha256 cdcdcd.* ababab",
        ),
        (
            json.dumps({"checkpoint_sha256": SHA, "names": ["a", "b"], "num_clusters": 2}),
            "has 2 names of 2 clusters, but the config has 1",
        ),
        (
            json.dumps({"checkpoint_sha256": SHA, "names": ["a"], "num_clusters": 7}),
            "1 names of 7 clusters, but the config",
        ),
        (json.dumps({"checkpoint_sha256": SHA, "names": ["ignore"], "num_clusters": 1}), "names no class"),
    ],
)
def test_mistakes(tmp_path, content, message):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        ClusterNames.read(tmp_path / "names.json", SHA, 1)
    assert "\n" not in str(error.value)


def test_another_encoding_is_told_in_a_line(tmp_path):
    (tmp_path / "names.json").write_bytes(json.dumps({"names": ["road"] * 100}).encode("utf-16"))
    with pytest.raises(ValueError, match=r"\(UnicodeDecodeError: 'utf-8' codec can't decode") as error:
        ClusterNames.read(tmp_path / "names.json", SHA, 100)
    assert len(str(error.value)) < 300


def test_classes_that_differ_by_capitals_are_told(tmp_path, caplog):
    names = ClusterNames.read(write(tmp_path / "names.json", ["Tree", "road", "tree"]), SHA, 3)
    assert names.classes == ["Tree", "road", "tree"]
    assert "names.json: classes that differ by capitals only: ['Tree', 'tree']" in caplog.text


def test_a_missing_file_and_too_many_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json do not exist: save them from gallery\.html"):
        ClusterNames.read(tmp_path / "gone.json", SHA, 1)
    many = [f"class {i}" for i in range(256)]
    with pytest.raises(ValueError, match="256 classes; an 8-bit class map holds 255"):
        ClusterNames.read(write(tmp_path / "names.json", many), SHA, 256)


def test_majority():
    """Cluster 0: 5 sky, 3 road. Cluster 1: 2 road. Cluster 2 does not occur."""
    assert majority_names(np.array([[5, 0, 0], [3, 2, 0]]), ["sky", "road"]) == ("sky", "road", None)
