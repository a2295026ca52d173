import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.data.sample_sets import register_scenes
from densesiam_d2.demo.baselines import assign_colours, evaluate_colour_kmeans, fit_colours

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def stripes(*colours):
    """An image of 8 rows with a stripe of 4 columns for each colour."""
    return np.repeat(np.array([colours], np.uint8), 4, axis=1).repeat(8, axis=0)


@pytest.fixture
def two_images(tmp_path):
    """Red, green and blue stripes of classes 0, 1 and 2; but the last stripe of the second image is red and class 2."""
    records = []
    for i, (colours, labels) in enumerate([((RED, GREEN, BLUE), (0, 1, 2)), ((RED, GREEN, RED), (0, 1, 2))]):
        image, label = tmp_path / f"image{i}.png", tmp_path / f"label{i}.png"
        cv2.imwrite(str(image), stripes(*colours)[..., ::-1])
        cv2.imwrite(str(label), np.array([labels], np.uint8).repeat(4, axis=1).repeat(8, axis=0))
        records.append({"file_name": str(image), "sem_seg_file_name": str(label), "height": 8, "width": 12})
    name = f"stripes_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_centres_are_the_colours():
    image = stripes(RED, GREEN, BLUE)
    centres = fit_colours([image], num_clusters=3, pixels_per_image=90)
    expected = cv2.cvtColor(np.array([[RED, GREEN, BLUE]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    order = np.argmin(np.linalg.norm(centres[None] - expected[:, None], axis=-1), axis=1)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(centres[order], expected, atol=0.1)
    clusters = assign_colours(image, centres)
    assert clusters.dtype == np.uint8
    np.testing.assert_array_equal(clusters, np.broadcast_to(np.repeat(order, 4), (8, 12)))


def test_score_by_hand(two_images):
    """Three clusters find the three colours; one of six stripes has the colour of another class.

    Class a: 2 stripes right, 1 falsely a: 2/3. Class b: 2 of 2. Class c: 1 right, 1 missed: 1/2. Mean 13/18.
    Pixel accuracy 5/6.
    """
    scores, centres = evaluate_colour_kmeans(two_images, two_images)
    assert centres.shape == (3, 3)
    assert [scores[f"IoU-{c}"] for c in "abc"] == pytest.approx([100 * 2 / 3, 100, 50])
    assert scores["mIoU"] == pytest.approx(100 * 13 / 18)
    assert scores["pACC"] == pytest.approx(100 * 5 / 6)


def test_same_seed_same_centres_on_scenes(tmp_path):
    name = f"baseline_{tmp_path.name}"
    register_scenes(name, tmp_path / "set", num=4, seed=0, size=64)
    first, centres = evaluate_colour_kmeans(name, name, str(tmp_path / "inference"))
    again, same_centres = evaluate_colour_kmeans(name, name)
    np.testing.assert_array_equal(centres, same_centres)
    assert first["mIoU"] == again["mIoU"] > 10  # ten clusters at random reach about 5
    assert (tmp_path / "inference" / "sem_seg_evaluation.json").is_file()
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
