"""Records of COCO files: those of detectron2's loader for sound files, repaired for others."""

import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from densesiam_d2.data.coco_sets import adopt_coco, register_coco
from tests.data_trees import real_data
from tests.labels.coco_files import coco, write

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.mark.parametrize(
    ("folder", "file", "images"),
    [("coco128", "instances.json", "images"), ("nuclei", "instances_val.json", "images/val")],
)
def test_sound_files_give_the_records_of_detectron2(folder, file, images):
    root = real_data(folder)
    register_coco("ours", root / file, root / images)
    ours = DatasetCatalog.get("ours")
    assert ours == load_coco_json(str(root / file), str(root / images), "theirs")
    ours, theirs = MetadataCatalog.get("ours"), MetadataCatalog.get("theirs")
    MetadataCatalog.remove("theirs")
    assert ours.thing_classes == theirs.thing_classes
    assert ours.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id


def test_keypoints_are_those_of_detectron2(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        annotation.update(keypoints=[12, 13, 2, 0, 0, 0], num_keypoints=1)
    path = write(content, tmp_path)
    register_coco("ours", path, tmp_path / "images")
    assert DatasetCatalog.get("ours") == load_coco_json(str(path), str(tmp_path / "images"), "theirs")
    MetadataCatalog.remove("theirs")


def test_sets_that_detectron2_registered_are_repaired_too(tmp_path):
    content = coco()
    content["annotations"][0]["bbox"] = [math.nan] * 4
    del content["annotations"][1]["iscrowd"]
    content["annotations"][2]["id"] = 2  # twice: detectron2's loader asserts
    register_coco_instances("theirs", {}, str(write(content, tmp_path)), str(tmp_path / "images"))
    with pytest.raises(AssertionError, match="not unique"):
        DatasetCatalog.get("theirs")
    adopt_coco("theirs")
    annotations = [a for record in DatasetCatalog.get("theirs") for a in record["annotations"]]
    assert annotations[0]["bbox"] == [10, 10, 40, 30]  # from its mask
    assert len(annotations) == 6 and annotations[1]["iscrowd"] == 0


def test_other_peoples_loaders_are_left_alone():
    DatasetCatalog.register("a_set_of_their_own", lambda: [{"file_name": "x"}])
    adopt_coco("a_set_of_their_own")
    assert DatasetCatalog.get("a_set_of_their_own") == [{"file_name": "x"}]


def test_labels_that_mean_nothing_stop_with_one_message(tmp_path):
    content = coco()
    content["annotations"][3]["category_id"] = 3
    register_coco("ours", write(content, tmp_path), tmp_path / "images")
    with pytest.raises(ValueError, match=r"not among the categories: 1; .*annotation 4 has category_id 3"):
        DatasetCatalog.get("ours")


def test_own_file_in_the_place_of_cocos(tmp_path):
    register_coco("ours", write(coco(), tmp_path), tmp_path / "images")
    MetadataCatalog.get("ours").thing_classes = ["person", "bicycle", "car"]
    with pytest.raises(ValueError, match=r"2 categories \(red, blue, ...\) are not those .* \(3\); name .* by coco:"):
        DatasetCatalog.get("ours")
