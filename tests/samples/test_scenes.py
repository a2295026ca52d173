import json

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from densesiam_d2.samples.scenes import (
    CLASSES,
    COLORS,
    STUFF_CLASSES,
    THING_CLASSES,
    _keeps_others_whole,
    draw_scene,
    write_scenes,
)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed=3, index=i, size=160) for i in range(60)]


def test_same_numbers_same_scene_other_numbers_another():
    first, again, other_index, other_seed = (draw_scene(*args, 96) for args in ((0, 5), (0, 5), (0, 6), (1, 5)))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.sem_seg, again.sem_seg)
    assert (first.image != other_index.image).any() and (first.image != other_seed.image).any()


def test_scene_does_not_depend_on_what_was_drawn_before():
    expected = draw_scene(0, 3, 96).image
    draw_scene(0, 2, 96)
    np.testing.assert_array_equal(draw_scene(0, 3, 96).image, expected)


@pytest.mark.parametrize("size", [64, 97, 320])
def test_any_size(size):
    scene = draw_scene(0, 0, size)
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert scene.sem_seg.shape == (size, size)
    with pytest.raises(ValueError, match="size=40"):
        draw_scene(0, 0, 40)


def test_every_pixel_is_labelled_and_every_class_occurs(scenes):
    assert len(CLASSES) == len(COLORS) == 10
    occurring = set().union(*(np.unique(s.sem_seg).tolist() for s in scenes))
    assert occurring == set(range(10))  # 255 would show up here


def test_instances_are_the_visible_pixels_of_things(scenes):
    for scene in scenes:
        seen = np.zeros(scene.sem_seg.shape, int)
        for instance in scene.instances:
            seen += instance["mask"]
            assert (scene.sem_seg[instance["mask"]] == len(STUFF_CLASSES) + instance["category_id"]).all()
            assert instance["mask"].sum() >= 30
            np.testing.assert_array_equal(binary_fill_holes(instance["mask"]), instance["mask"])
        # Instances are disjoint, and together exactly the pixels that carry a thing's label.
        np.testing.assert_array_equal(seen, scene.sem_seg >= len(STUFF_CLASSES))


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        (np.s_[10:20, 10:20], False),  # a hole
        (np.s_[0:20, 10:20], True),  # a notch
        (np.s_[5:25, 5:24], False),  # leaves 20 of 400 pixels
        (np.s_[5:25, 5:23], True),  # leaves 40
        (np.s_[26:30, 0:30], True),  # touches nothing
    ],
)
def test_a_thing_is_drawn_only_where_others_stay_whole(window, kept):
    owner = np.zeros((30, 30), np.uint8)
    owner[5:25, 5:25] = 1
    mask = np.zeros((30, 30), bool)
    mask[window] = True
    assert _keeps_others_whole(owner, mask) is kept


def test_some_things_are_occluded(scenes):
    def is_convex(mask):
        (contour, *others), _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return not others and cv2.contourArea(contour) > 0.9 * cv2.contourArea(cv2.convexHull(contour))

    balls = [i["mask"] for s in scenes for i in s.instances if THING_CLASSES[i["category_id"]] == "ball"]
    assert sum(not is_convex(mask) for mask in balls) >= 5


def test_polygons_rasterise_to_the_masks(scenes):
    for scene in scenes:
        for instance in scene.instances:
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(instance["polygons"], 160, 160)))
            union = (mask.astype(bool) | instance["mask"]).sum()
            assert (mask.astype(bool) & instance["mask"]).sum() / union > 0.9


def test_pairs_of_stuff_share_their_colours_but_not_their_structure():
    """The classes of a pair overlap in mean colour; their contrast along x or along y differs by more than half."""
    mean, contrast = {}, {}
    for scene in (draw_scene(11, i, 96) for i in range(60)):
        grey = scene.image.mean(axis=2)
        steps = np.abs(np.stack([np.gradient(grey, axis=1), np.gradient(grey, axis=0)], axis=-1))
        for label in np.unique(scene.sem_seg[scene.sem_seg < 6]):
            inside = scene.sem_seg == label
            mean.setdefault(STUFF_CLASSES[label], []).append(scene.image[inside].mean(axis=0))
            contrast.setdefault(STUFF_CLASSES[label], []).append(steps[inside].mean(axis=0))
    for first, second in (("sky", "water"), ("grass", "bush"), ("sand", "brick")):
        distance = np.linalg.norm(np.mean(mean[first], axis=0) - np.mean(mean[second], axis=0))
        assert distance < 2 * np.linalg.norm(np.std(mean[first], axis=0)), (first, second)
        ratio = np.mean(contrast[first], axis=0) / np.mean(contrast[second], axis=0)
        assert np.abs(np.log(ratio)).max() > np.log(1.5), (first, second)


def test_files_hold_the_scene(tmp_path):
    write_scenes(tmp_path / "set", num=2, seed=9, size=96)
    scene = draw_scene(9, 1, 96)
    stored = cv2.imread(str(tmp_path / "set/images/00001.jpg"))[..., ::-1]
    assert np.abs(stored.astype(int) - scene.image).mean() < 6  # JPEG
    sem_seg = cv2.imread(str(tmp_path / "set/sem_seg/00001.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sem_seg, scene.sem_seg)


def test_second_call_reuses_other_arguments_redraw(tmp_path):
    root = tmp_path / "set"
    write_scenes(root, num=1, seed=0, size=64)
    stamp = (root / "instances.json").stat().st_mtime_ns
    write_scenes(root, num=1, seed=0, size=64)
    assert (root / "instances.json").stat().st_mtime_ns == stamp
    write_scenes(root, num=2, seed=0, size=64)
    assert len(list((root / "images").iterdir())) == 2
    assert list(tmp_path.iterdir()) == [root]  # no temporary folder is left
    (root / "meta.json").unlink()
    with pytest.raises(ValueError, match="holds files that are no densesiam_d2 scenes"):
        write_scenes(root, num=2, seed=0, size=64)
    with pytest.raises(ValueError, match="num=0"):
        write_scenes(tmp_path / "none", num=0, seed=0)


def test_json_loads_as_coco(tmp_path):
    root = write_scenes(tmp_path / "set", num=3, seed=0, size=96)
    dicts = load_coco_json(str(root / "instances.json"), str(root / "images"), f"coco_{tmp_path.name}")
    assert MetadataCatalog.get(f"coco_{tmp_path.name}").thing_classes == list(THING_CLASSES)
    stored = json.loads((root / "instances.json").read_text())["annotations"]
    assert [a["id"] for a in stored] == list(range(1, len(stored) + 1))
    assert sum(len(d["annotations"]) for d in dicts) == len(stored)
    MetadataCatalog.remove(f"coco_{tmp_path.name}")
