import cv2
import numpy as np
import pytest

from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.probe.truth import LabelledImages


def write(root, labels, classes="a\nb\n"):
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number, label in enumerate(labels):
        cv2.imwrite(str(root / "images" / f"{number}.png"), np.zeros((*label.shape, 3), np.uint8))
        cv2.imwrite(str(root / "labels" / f"{number}.png"), label)
    (root / "classes.txt").write_text(classes)
    name = f"masks:{root}/images,labels={root}/labels"
    register_path_datasets([name])
    return name


def test_label_maps(catalog, tmp_path, caplog):
    label = np.array([[0, 1], [255, 1]], np.uint8)
    images = LabelledImages(write(tmp_path, [label], "a\nb\nc\n"), white_level=65535)
    assert "classes that never occur: 1" in caplog.text
    assert len(images) == 1
    assert images.classes == ["a", "b", "c"]
    image, found = images[0]
    assert image.shape == (2, 2, 3)
    assert found.tolist() == label.tolist()


def test_a_value_that_is_no_class_is_named(catalog, tmp_path):
    name = write(tmp_path, [np.array([[0, 7]], np.uint8)])
    with pytest.raises(ValueError, match="7"):
        LabelledImages(name, white_level=65535)


def test_a_wrong_value_that_the_look_has_not_seen_stops_the_reading(catalog, tmp_path):
    images = LabelledImages(write(tmp_path, [np.array([[0, 1]], np.uint8)]), white_level=65535)
    cv2.imwrite(str(tmp_path / "labels" / "0.png"), np.array([[0, 7]], np.uint8))
    with pytest.raises(
        ValueError, match=r"0\.png has the values \[7\] in 1 pixels; classes are 0 to 1, and 255 does not count"
    ):
        images[0]
    cv2.imwrite(str(tmp_path / "labels" / "0.png"), np.array([[0, 1, 1]], np.uint8))
    with pytest.raises(ValueError, match=r"0\.png has \(1, 3\) pixels, its image"):
        images[0]
