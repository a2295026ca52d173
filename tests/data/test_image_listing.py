import logging
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densesiam_d2.data.image_listing import load_image_folder, load_image_list
from densesiam_d2.data.path_datasets import register_path_datasets


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.JPEG", "b/1.png", "a/deep/3.jpg", "b/._1.png", "notes.txt", "b/x.heic", "b/y.heic", "Makefile"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            Image.new("RGB", (8, 6)).save(path)
        else:
            path.write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def registered():
    names = []

    def register(*new):
        names.extend(new)
        register_path_datasets(new)

    yield register
    for name in set(names):
        if name.startswith(("folder:", "list:")):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_folder_is_recursive_and_sorted_and_counts_the_rest(folder, caplog):
    with caplog.at_level(logging.INFO):
        records = load_image_folder(folder)
    assert [record["file_name"] for record in records] == [
        str(folder / name) for name in ("a/deep/3.jpg", "b/1.png", "b/2.JPEG")
    ]
    assert [record["image_id"] for record in records] == [0, 1, 2]
    for part in ("3 images", "2 .heic", "1 .txt", "1 hidden", "1 without ending"):
        assert part in caplog.text


def test_two_folders_keep_their_order(folder):
    records = load_image_folder(folder / "b", folder / "a")
    assert [record["file_name"][len(str(folder)) :] for record in records] == ["/b/1.png", "/b/2.JPEG", "/a/deep/3.jpg"]
    assert [record["image_id"] for record in records] == [0, 1, 2]


def test_links_are_followed_and_circles_end(folder):
    (folder / "a" / "circle").symlink_to(folder)
    (folder / "other").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    Image.new("RGB", (8, 6)).save(folder.parent / "elsewhere" / "4.png")
    assert len(load_image_folder(folder)) == 4


def test_a_folder_that_cannot_be_read_is_not_left_out(folder, monkeypatch):
    locked = sorted(path for path in folder.iterdir() if path.is_dir())[0]
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=locked.name):
        load_image_folder(folder)


def test_missing_and_empty_folder(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_image_folder(tmp_path / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images.*none"):
        load_image_folder(folder / "empty")
    (folder / "empty" / "a.heic").write_text("")
    with pytest.raises(ValueError, match=r"1 \.heic"):
        load_image_folder(folder / "empty")


def test_list_is_relative_to_its_own_folder(folder):
    listing = folder / "list.txt"
    listing.write_text(f"b/2.JPEG\n\n  b/1.png \n{folder}/a/deep/3.jpg\n")
    assert [record["file_name"] for record in load_image_list(listing)] == [
        str(folder / name) for name in ("b/2.JPEG", "b/1.png", "a/deep/3.jpg")
    ]


def test_list_with_missing_files_gives_one_error(folder):
    listing = folder / "list.txt"
    listing.write_text("b/1.png\n" + "".join(f"gone{i}.png\n" for i in range(5)))
    with pytest.raises(FileNotFoundError, match=r"5 of the 6 images in .*gone0\.png.*gone2\.png$"):
        load_image_list(listing)
    listing.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        load_image_list(listing)
    with pytest.raises(FileNotFoundError, match=r"no\.txt does not exist"):
        load_image_list(folder / "no.txt")


def test_names_are_registered_once_and_read_late(folder, tmp_path, registered):
    name, late, listing = f"folder:{folder}", f"folder:{tmp_path}/later", f"list:{folder}/list.txt"
    registered(name, late, listing, "coco_2017_train")
    registered(name)
    assert len(DatasetCatalog.get(name)) == 3
    assert MetadataCatalog.get(name).image_root == str(folder)
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get(late)
    (tmp_path / "later").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "later" / "a.png")
    assert len(DatasetCatalog.get(late)) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [(r"images\a.png", "are from Windows: write / instead"), ("https://x.org/a.png", "addresses are not fetched")],
)
def test_names_of_another_kind_in_a_list(tmp_path, name, hint):
    (tmp_path / "list.txt").write_text(f"{name}\n")
    with pytest.raises(FileNotFoundError) as raised:
        load_image_list(tmp_path / "list.txt")
    assert name in str(raised.value) and hint in str(raised.value)
