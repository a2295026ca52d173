"""Images and label maps that pair by name."""

import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data.label_folders import pair_files, read_classes


def save(path, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


def names(paths, root):
    return [str(path).removeprefix(f"{root}/") for path in paths]


def test_any_ending_any_case_links_and_folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("a.jpg", "b.JPG", "c.png", "deep/d.jpeg", ".hidden/e.jpg", ".f.jpg", "alone.jpg"):
        save(images / name)
    for name in ("a.png", "b.PNG", "c.Png", "deep/d.png", ".hidden/e.png", ".f.png", "nobody.png"):
        save(labels / name)
    (labels / "readme.txt").write_text("")
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "g.jpg")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    save(labels / "linked" / "g.png")
    pairs = pair_files(images, labels)
    found = [(r["file_name"], r["sem_seg_file_name"]) for r in pairs.records]
    assert names([image for image, _ in found], images) == ["a.jpg", "b.JPG", "c.png", "deep/d.jpeg", "linked/g.jpg"]
    assert names([label for _, label in found], labels) == ["a.png", "b.PNG", "c.Png", "deep/d.png", "linked/g.png"]
    assert names(pairs.images_alone, images) == ["alone.jpg"]
    assert names(pairs.labels_alone, labels) == ["nobody.png"]


def test_labels_below_the_images_and_beside_them(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "labels" / "a.png")
    assert len(pair_files(tmp_path, tmp_path / "labels").records) == 1
    assert pair_files(tmp_path, tmp_path / "labels").images_alone == []
    other_spelling = pair_files(tmp_path, tmp_path / ".." / tmp_path.name / "labels")
    assert len(other_spelling.records) == 1 and other_spelling.images_alone == []
    save(tmp_path / "a.png")
    (record,) = pair_files(tmp_path, tmp_path).records
    assert record == {"file_name": str(tmp_path / "a.jpg"), "sem_seg_file_name": str(tmp_path / "a.png")}


def test_nothing_pairs(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "labels" / "a_mask.png")
    save(tmp_path / "labels" / "a.jpg")
    with pytest.raises(ValueError, match=r"\(a\) has a label map .* \(a_mask\); other files in the two: 1 \.jpg"):
        pair_files(tmp_path / "images", tmp_path / "labels")


def test_accents_as_characters_of_their_own(tmp_path):
    save(tmp_path / "images" / "caf\u00e9.jpg")
    save(tmp_path / "labels" / "cafe\u0301.png")
    (record,) = pair_files(tmp_path / "images", tmp_path / "labels").records
    assert record["sem_seg_file_name"] == str(tmp_path / "labels" / "cafe\u0301.png")


def test_two_files_of_one_name(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "images" / "a.png")
    save(tmp_path / "labels" / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have one name"):
        pair_files(tmp_path / "images", tmp_path / "labels")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such"):
        pair_files(tmp_path, tmp_path / "no/such")


def test_more_classes_than_a_label_map_can_hold(tmp_path):
    (tmp_path / "classes.txt").write_text("".join(f"{i}\n" for i in range(256)))
    with pytest.raises(ValueError, match=r"classes\.txt names 256 classes; label maps hold 255"):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["# label:color_rgb:parts:actions\nsky\n", "names:\n  0: sky\n", '{"0": "sky"}\n', "name,r,g,b\nsky,1,2,3\n"],
)
def test_class_names_of_another_kind_of_file_are_refused(text, tmp_path):
    """Their first line would be the class 0, and all others would move by one."""
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.txt: line 1 is .*, no class; write one name a line"):
        read_classes(tmp_path)
