"""Trees in Pascal VOC's layout as other tools write them: ground truth given as predictions scores 100."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from densesiam_d2.data.voc_sets import adopt_voc
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.labels.voc import read_voc_xml
from tests.data_trees import real_data, write_voc_tree
from tests.evaluation.processes import in_two_processes
from tests.evaluation.truth_as_predictions import predict, score
from tests.evaluation.voc_files import voc_xml

pytestmark = pytest.mark.usefixtures("catalog")

STOCK_TAGS = "<truncated>0</truncated><pose>Unspecified</pose>"  # which detectron2's evaluator needs
ALL_RIGHT = pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})


@pytest.fixture
def voc(tmp_path):
    """Register COCO-128 as a VOC tree, which does not have all 20 classes."""
    root = tmp_path / "voc"
    write_voc_tree(real_data("coco128"), root)
    register_pascal_voc("voc", str(root), "test", 2012)
    MetadataCatalog.get("voc").evaluator_type = "pascal_voc"
    return root


@pytest.fixture
def own(tmp_path):
    """Return a function that registers a tree of given XML files and class names, and returns its records."""

    def make(classes, *files, year=2012):
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True)
        for i, text in enumerate(files):
            (tmp_path / "Annotations" / f"{i}.xml").write_text(text)
        # With a byte order mark and empty lines.
        lines = "".join(f"{i}\n\n" for i in range(len(files)))
        (tmp_path / "ImageSets" / "Main" / "test.txt").write_text(lines, encoding="utf-8-sig")
        register_pascal_voc("own", str(tmp_path), "test", year, classes)
        MetadataCatalog.get("own").evaluator_type = "pascal_voc"
        adopt_voc("own")
        return DatasetCatalog.get("own")

    return make


def evaluate(cfg, name, records, **options):
    return score(build_evaluator(cfg, name), records, masks=False, **options)["bbox"]


def test_classes_without_objects_are_named_and_not_averaged(voc, cfg, caplog):
    present = {e.text for file in (voc / "Annotations").iterdir() for e in ET.parse(file).iter("name")}
    evaluator = build_evaluator(cfg, "voc")
    assert set(evaluator.absent_classes) == set(CLASS_NAMES) - present and evaluator.absent_classes
    assert f"voc: classes without any object ({20 - len(present)}): {', '.join(evaluator.absent_classes)}" in (
        caplog.messages
    )
    assert score(evaluator, DatasetCatalog.get("voc"), masks=False)["bbox"] == ALL_RIGHT


def test_without_difficult_truncated_and_pose(voc, cfg):
    for file in (voc / "Annotations").iterdir():
        text = re.sub("<(difficult|truncated|pose)>.*?</.*?>", "", file.read_text())
        assert "difficult" not in text and "pose" not in text
        file.write_text(text)
    assert evaluate(cfg, "voc", DatasetCatalog.get("voc")) == ALL_RIGHT


def test_classes_by_name(voc, cfg):
    turned = list(reversed(CLASS_NAMES))
    cfg.MODEL.CLASS_NAMES = turned
    classes = [turned.index(name) for name in CLASS_NAMES]
    records = DatasetCatalog.get("voc")
    assert evaluate(cfg, "voc", records, classes=classes) == ALL_RIGHT
    assert evaluate(cfg, "voc", records)["AP50"] < 50  # what this is about


def test_two_processes_score_as_one(voc, cfg):
    records = DatasetCatalog.get("voc")
    main, other = in_two_processes(lambda rank: score(build_evaluator(cfg, "voc"), records[rank::2], masks=False))
    assert main["bbox"] == ALL_RIGHT and other is None


def test_evaluating_twice_gives_the_same(voc, cfg):
    cfg.MODEL.CLASS_NAMES = list(reversed(CLASS_NAMES))
    evaluator = build_evaluator(cfg, "voc")
    first = score(evaluator, DatasetCatalog.get("voc"), masks=False)
    assert evaluator.evaluate() == first
    assert score(evaluator, DatasetCatalog.get("voc"), masks=False) == first


@pytest.mark.parametrize("year", [2007, 2012])
def test_own_classes_and_fractions_of_pixels(own, cfg, year):
    """The first box, cut to whole pixels, would only have IoU 0.70 with its prediction."""
    classes = ["cell/dividing", "cell"]
    records = own(
        classes,
        voc_xml(("cell/dividing", (5.5, 5.5, 9.4, 9.4)), ("cell", (20, 30, 60, 50))),
        voc_xml(("cell", (1, 1, 96, 64))),
        year=year,
    )
    assert evaluate(cfg, "own", records) == ALL_RIGHT


def test_difficult_objects_do_not_count(own, cfg):
    """Class b has a difficult object only; finding it or not changes nothing."""
    records = own(
        ["a", "b"], voc_xml(("a", (1, 1, 20, 20))), voc_xml(("b", (1, 1, 20, 20)), tags="<difficult>1</difficult>")
    )
    assert build_evaluator(cfg, "own").absent_classes == ["b"]
    assert evaluate(cfg, "own", records) == ALL_RIGHT
    assert evaluate(cfg, "own", records[:1]) == ALL_RIGHT


def test_missed_and_wrong_objects(own, cfg):
    """Class a: one of two found, AP 50. Class b: found, and before it something wrong, precision 1/2, AP 50."""
    records = own(
        ["a", "b"], voc_xml(("a", (1, 1, 20, 20)), ("a", (30, 30, 50, 50)), ("b", (60, 1, 80, 20))), voc_xml()
    )
    evaluator = build_evaluator(cfg, "own")
    evaluator.reset()
    found, nothing = predict(records[0], masks=False), predict(records[0], masks=False)[:1]
    found.scores[2], nothing.pred_classes[0] = 0.5, 1
    evaluator.process(records, [{"instances": found[[0, 2]]}, {"instances": nothing}])
    assert evaluator.evaluate()["bbox"] == pytest.approx({"AP": 50, "AP50": 50, "AP75": 50})


@pytest.mark.parametrize("year", [2007, 2012])
def test_scores_are_those_of_the_stock_evaluator(own, cfg, tmp_path, year):
    """Random predictions: right, shifted, doubled, of the wrong class, of difficult objects, in an empty image."""
    rng = np.random.default_rng(0)
    files = [voc_xml()]
    for _ in range(12):
        low, high = rng.integers(1, 40, (6, 2)), rng.integers(1, 15, (6, 2))
        objects = [("abc"[i % 3], (*low[i], *(low[i] + 8 + high[i]))) for i in range(6)]
        files.append(voc_xml(*objects, tags=f"<difficult>{rng.integers(2)}</difficult>{STOCK_TAGS}"))
    records = own(["a", "b", "c"], *files, year=year)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text(
        "\n".join(map(str, range(13)))
    )  # the stock code takes this
    ours, stock = build_evaluator(cfg, "own"), PascalVOCDetectionEvaluator("own")
    ours.reset(), stock.reset()
    for record in records:
        true = np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        boxes = np.concatenate([true, true + rng.normal(size=true.shape), rng.integers(1, 60, (3, 4))])
        classes = np.array([a["category_id"] for a in record["annotations"]] * 2 + [0, 1, 2])
        classes[rng.random(len(classes)) < 0.1] = 0
        instances = Instances(
            (64, 96), pred_boxes=Boxes(torch.from_numpy(boxes)), pred_classes=torch.from_numpy(classes)
        )
        instances.scores = torch.from_numpy(rng.integers(1, 20, len(boxes)) / 20)  # with ties
        for evaluator in (ours, stock):
            evaluator.process([record], [{"instances": instances}])
    expected = stock.evaluate()["bbox"]
    assert ours.evaluate()["bbox"] == pytest.approx(expected, abs=1e-9)
    assert not ours.absent_classes  # the stock mean would count such a class as 0
    assert 5 < expected["AP75"] < expected["AP50"] < 95


def test_names_with_spaces_and_boxes_outside(own, cfg, tmp_path):
    own(["a"], voc_xml(("a", (1, 1, 20, 20)), ("a", (97, 1, 120, 20))), voc_xml(("a", (30, 30, 50, 50))))
    (tmp_path / "Annotations" / "0.xml").rename(tmp_path / "Annotations" / "my photo.xml")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("my photo\n1\n")
    records = DatasetCatalog.get("own")
    assert [len(record["annotations"]) for record in records] == [1, 1]
    assert evaluate(cfg, "own", records) == ALL_RIGHT


def test_mistakes_in_one_line(own, cfg, tmp_path):
    records = own(["a"], voc_xml(("a", (1, 1, 20, 20)), tags="<difficult>1</difficult>"))
    with pytest.raises(ValueError, match=r"test\.txt: none of its images has an object to score"):
        build_evaluator(cfg, "own")
    (tmp_path / "Annotations" / "0.xml").write_text(voc_xml(("a", (1, 1, 20, 20))))
    evaluator = build_evaluator(cfg, "own")
    with pytest.raises(ValueError, match=r"own has 1 classes, but the model predicts number 1 \(from 0\)"):
        score(evaluator, records, masks=False, classes=[1])


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation>", "cannot be read as XML"),
        ("<?xml version='1.0' encoding='unheard'?><annotation/>", "cannot be read as XML: unknown encoding"),
        (voc_xml(("a", ("one", 1, 2, 2))), "<bndbox/xmin> of <object> is 'one', not a number"),
        (voc_xml(("a", ("nan", 1, 2, 2))), "<bndbox/xmin> of <object> is 'nan', not a number"),
        (voc_xml(size=("inf", 64)), "<size/width> of <annotation> is 'inf', not a number"),
        (
            voc_xml(("a", (1, 1, 2, 2)), tags="<difficult>no</difficult>"),
            "<difficult> of <object> is 'no', not a number",
        ),
        (voc_xml((" ", (1, 1, 2, 2))), "an <object> has no <name>"),
    ],
)
def test_xml_that_cannot_be_read(text, message, tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}"):
        read_voc_xml(path)


def test_xml_with_spaces_and_empty_tags(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(voc_xml((" a ", (1, 1, 2, 2.5)), tags="<difficult/>"))
    expected = {"name": "a", "bbox": [1, 1, 2, 2.5], "difficult": 0}
    assert read_voc_xml(path) == {"width": 96, "height": 64, "objects": [expected]}
