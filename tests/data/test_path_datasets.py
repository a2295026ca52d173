"""Names that say where data is: what belongs to the path, and what is an option."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densesiam_d2.data.path_datasets import load_records, register_path_datasets
from tests.labels.coco_files import coco, write

pytestmark = pytest.mark.usefixtures("catalog")


def metadata(name):
    register_path_datasets([name])
    return MetadataCatalog.get(name)


def save_pairs(folder, stems, size=(8, 6)):
    for number, stem in enumerate(stems):
        for part, suffix in (("images", ".jpg"), ("labels", ".png")):
            path = folder / part / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(size, number % 2, np.uint8)).save(path)


def test_coco_with_and_without_a_folder_of_images(tmp_path):
    plain, elsewhere = f"coco:{tmp_path}/a.json", f"coco:{tmp_path}/a.json,images=/pictures"
    assert metadata(plain).image_root == str(tmp_path)
    assert metadata(elsewhere).image_root == "/pictures"
    assert {metadata(name).json_file for name in (plain, elsewhere)} == {f"{tmp_path}/a.json"}
    assert metadata(plain).evaluator_type == "coco" and metadata(plain).get("subset") is None


@pytest.mark.parametrize(
    ("rest", "path", "images", "subset"),
    [
        ("/a b,c=d/x, y.json", "/a b,c=d/x, y.json", "/a b,c=d", None),
        ("/a,images.json,images=/b,c d=e/f", "/a,images.json", "/b,c d=e/f", None),
        ("/a.json,subset=5", "/a.json", "/", (5, 0)),
        ("/a.json,seed=3,subset=5", "/a.json", "/", (5, 3)),
        ("/a.json,images=/b,subset=5,seed=12", "/a.json", "/b", (5, 12)),
        ("/a,images=/b/x.json,images=/c", "/a,images=/b/x.json", "/c", None),
        ("a.json", "a.json", ".", None),
        ("~/a.json,images=~/b", "HOME/a.json", "HOME/b", None),
    ],
)
def test_only_known_parts_at_the_end_are_options(rest, path, images, subset):
    found = metadata(f"coco:{rest}")
    home = str(Path.home())
    assert found.json_file == path.replace("HOME", home) and found.image_root == images.replace("HOME", home)
    assert found.get("subset") == subset


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco:", "nothing for path"),
        ("folder:", "nothing for path"),
        ("list:", "nothing for path"),
        ("index:", "nothing for path"),
        ("coco:/a.json,images=", "nothing for images"),
        ("coco:/a.json,subset=0", "subset= above 0"),
        ("coco:/a.json,subset=some", "whole numbers"),
        ("coco:/a.json,subset=3,seed=-1", "whole numbers"),
        ("coco:/a.json,seed=3", "whole numbers"),
        ("masks:/a", "names no folder of label maps"),
        ("masks:,labels=/b", "nothing for path"),
        ("masks:/a,labels=/b,subset=1,subset=2", "has subset= twice"),
        ("coco:/a.json,subset=1,subset=2", "has subset= twice"),
    ],
)
def test_names_of_another_form(name, message):
    with pytest.raises(ValueError, match=message) as error:
        register_path_datasets([name])
    assert "form is" in str(error.value) and name not in DatasetCatalog


def test_subsets_of_label_maps_are_nested(tmp_path):
    save_pairs(tmp_path, [f"{i:02d}" for i in range(12)])
    whole = f"masks:{tmp_path}/images,labels={tmp_path}/labels"
    names = [f"{whole},subset=3,seed=1", f"{whole},subset=8,seed=1", whole]
    register_path_datasets(names)
    few, more, every = ({r["file_name"] for r in DatasetCatalog.get(name)} for name in names)
    assert few < more < every and [len(few), len(more), len(every)] == [3, 8, 12]


def test_class_names(tmp_path):
    save_pairs(tmp_path, "ab")
    name = f"masks:{tmp_path}/images,labels={tmp_path}/labels"

    def classes():
        register_path_datasets([name])
        found = MetadataCatalog.get(name).get("stuff_classes")
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        return found

    assert classes() is None
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    assert classes() == ["road", "sky"]
    (tmp_path / "labels" / "classes.txt").write_text("\ufeffStraße\r\ngrüner Baum\r\n\r\n", encoding="utf-8")
    assert classes() == ["Straße", "grüner Baum"]
    (tmp_path / "names").write_text("x\ny\nz")
    assert metadata(f"{name},classes={tmp_path}/names").stuff_classes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "names no class"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "the class 'a' twice"),
        ("a\nStraße".encode("latin-1"), "line 2.*UTF-8"),
    ],
)
def test_class_names_that_cannot_be_used(text, message, tmp_path):
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{message}"):
        register_path_datasets([f"masks:{tmp_path},labels={tmp_path}"])


def test_missing_class_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="/no/such do not exist"):
        register_path_datasets([f"masks:{tmp_path},labels={tmp_path},classes=/no/such"])


def test_records_of_a_coco_name_with_spaces(tmp_path):
    folder = tmp_path / "a, b=c"
    write(coco(), folder)
    name = f"coco:{folder}/train.json,images={folder}/images"
    register_path_datasets([name])
    records = DatasetCatalog.get(name)
    assert [r["file_name"] for r in records] == [f"{folder}/images/p{i}.png" for i in (1, 2, 3)]
    assert MetadataCatalog.get(name).thing_classes == ["red", "blue"]


def test_the_working_directory_is_a_folder(tmp_path, monkeypatch, catalog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(load_records(["folder:."])) == 1
