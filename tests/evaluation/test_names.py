import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from densesiam_d2.evaluation.names import check_predicted_classes, model_order
from densesiam_d2.labels.classes import class_order


@pytest.fixture(autouse=True)
def metadata():
    MetadataCatalog.get("test_names_a").set(stuff_classes=["sky", "road", "car"])
    MetadataCatalog.get("test_names_b").set(stuff_classes=["car", "sky", "road"])
    yield
    for name in ("test_names_a", "test_names_b"):
        MetadataCatalog.remove(name)


def test_order():
    # The model's class 0 is the test set's class 1, and so on.
    assert class_order(["sky", "road", "car"], ["car", "sky", "road"]) == [1, 2, 0]
    assert class_order(["sky", "road"], ["sky", "road"]) is None


@pytest.mark.parametrize(
    "model, test, message",
    [
        (["a", "b", "c"], ["b", "d"], "3 classes in training, 2 in the test set; only in training: a, c; only in the"),
        (
            ["a", "b"],
            ["a"],
            "2 classes in training, 1 in the test set; only in training: b; only in the test set: none",
        ),
        (["sea", "café "], ["sea", "café"], r"2 .*only in training: 'caf\\xe9 '; only in the test set: 'caf\\xe9'"),
        (["a", "b", "a"], ["a", "a", "b"], "the order differs, but classes go by name, and several are called a"),
    ],
)
def test_names_that_cannot_be_matched(model, test, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        class_order(model, test)


def test_the_model_knows_better_than_the_training_set(cfg):
    cfg.DATASETS.TRAIN = ("test_names_b",)
    assert model_order(cfg, "test_names_a", "stuff_classes") == [2, 0, 1]
    cfg.MODEL.CLASS_NAMES = ["road", "sky", "car"]
    assert model_order(cfg, "test_names_a", "stuff_classes") == [1, 0, 2]
    assert model_order(cfg, "test_names_a", "thing_classes") is None  # the set has none
    cfg.MODEL.CLASS_NAMES = ["sky", "road", "bus"]
    with pytest.raises(ValueError, match=r"test_names_a: MODEL\.CLASS_NAMES are not its classes: .*bus.*car$"):
        model_order(cfg, "test_names_a", "stuff_classes")


def test_training_sets_without_names_say_nothing(cfg, caplog):
    cfg.DATASETS.TRAIN = ("test_names_unlabelled",)
    assert model_order(cfg, "test_names_a", "stuff_classes") is None and not caplog.messages


def test_no_prediction_is_no_class():
    check_predicted_classes("any", Instances((4, 4), pred_classes=[]), 2)
