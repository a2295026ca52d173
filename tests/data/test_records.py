"""Records of data sets: local files below their roots, known categories."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.data.datasets import check_records


@pytest.fixture
def name():
    name = "set_of_test_records"
    MetadataCatalog.get(name).set(image_root="/data/images")
    yield name
    MetadataCatalog.remove(name)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)


def record(file="/data/images/a.jpg", category=0, **more):
    return {"file_name": file, "annotations": [{"id": 71, "category_id": category}], **more}


def test_good_records_pass(name):
    check_records([name], [record(category=79), {"file_name": "/data/images/deep/b.jpg"}], num_classes=80)


def test_label_maps_may_lie_elsewhere(name):
    check_records([name], [record(sem_seg_file_name="/labels/a.png")])


@pytest.mark.parametrize("file", ["/data/images/../a.jpg", "/etc/a.jpg", "http://127.0.0.1/a.jpg"])
def test_names_that_lead_away_are_refused(name, file):
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        check_records([name], [record(), record(file)])


def test_without_a_root_anything_local_goes():
    other = "set_of_test_records_without_root"
    try:
        check_records([other], [record("/anywhere/a.jpg")])
        with pytest.raises(ValueError, match="http://"):
            check_records([other], [record("/a.jpg", sem_seg_file_name="http://h/a.png")])
    finally:
        MetadataCatalog.remove(other)


@pytest.mark.parametrize("category", [-1, 80])
def test_unknown_categories_are_named(name, category):
    text = rf"a\.jpg: annotation 71 has the category {category}; MODEL\.ROI_HEADS\.NUM_CLASSES 80 allows 0 to 79"
    with pytest.raises(ValueError, match=text):
        check_records([name], [record(), record(category=category)], num_classes=80)
