from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from densesiam_d2.samples.writing import mask_to_polygons, to_annotation, write_folder


def rasterise(polygons, height, width):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def test_polygon_of_a_rectangle_runs_along_its_pixel_edges():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:22] = True  # edges: x 10 and 22, y 5 and 15
    (polygon,) = mask_to_polygons(mask)
    points = np.array(polygon).reshape(-1, 2)
    # Traced through the centres of 1/8 pixels: at most 1/16 inside the edges, rounded to 0.01.
    np.testing.assert_allclose(points.min(0), [10, 5], atol=0.07)
    np.testing.assert_allclose(points.max(0), [22, 15], atol=0.07)
    assert (rasterise([polygon], 20, 30) == mask).all()


def test_every_piece_gets_a_polygon():
    mask = np.zeros((20, 20), bool)
    mask[2:6, 2:6] = mask[10, 10] = True  # the second is one single pixel, at the least a polygon of COCO
    polygons = mask_to_polygons(mask)
    assert sorted(len(p) >= 6 for p in polygons) == [True, True]
    assert (rasterise(polygons, 20, 20) == mask).all()
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []


def test_annotation_box_and_area():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:22] = True
    mask[5, 10] = False  # a missing corner changes the area, not the box
    annotation = to_annotation(mask, category_id=3, image_id=7, annotation_id=1)
    assert annotation["bbox"] == [10, 5, 12, 10]
    assert annotation["area"] == 10 * 12 - 1
    assert (annotation["category_id"], annotation["image_id"], annotation["iscrowd"]) == (3, 7, 0)


def test_write_folder_is_all_or_nothing(tmp_path):
    def broken(folder):
        (folder / "half").touch()
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(tmp_path / "set", {"kind": "a"}, broken)
    assert list(tmp_path.iterdir()) == []


def test_write_folder_reuses_redraws_and_spares_other_files(tmp_path):
    calls = []
    folder = tmp_path / "set"
    for version in (1, 1, 2):
        write_folder(folder, {"kind": "a", "version": version}, lambda f: calls.append((f / "x").touch()))
    assert len(calls) == 2
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "x"]
    with pytest.raises(ValueError, match="holds files that are no b"):
        write_folder(folder, {"kind": "b"}, lambda f: None)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/scenes cannot be written \(.*DETECTRON2_DATASETS"):
        write_folder(tmp_path / "file" / "scenes", {"kind": "scenes"}, lambda folder: None)


@pytest.mark.parametrize("content", ['[{"a": 1}]', '{"kind": "a'])
def test_a_folder_with_another_meta_file_is_spared(tmp_path, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match="holds files that are no a"):
        write_folder(tmp_path, {"kind": "a"}, lambda f: None)


def test_files_of_others_and_the_current_folder_are_not_replaced(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "set", {"kind": "a", "version": 1}, lambda f: (f / "x").touch())
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"set holds other files, such as mine\.txt, and would be replaced"):
        write_folder(folder, {"kind": "a", "version": 2}, lambda f: (f / "x").touch())
    assert (folder / "mine.txt").read_text() == "mine" and list(tmp_path.iterdir()) == [folder]
    (folder / "mine.txt").unlink()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="set is the current folder, which would be replaced"):
        write_folder(Path(), {"kind": "a", "version": 2}, lambda f: (f / "x").touch())
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "x"]
