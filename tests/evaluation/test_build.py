import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.config_checks import ConfigError
from densesiam_d2.engine import check_evaluators
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.evaluation.cityscapes import CityscapesInstanceEvaluator
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.coco import RepairedCOCOEvaluator
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator
from densesiam_d2.evaluation.voc import VOCEvaluator
from tests.evaluation.voc_files import voc_xml
from tests.labels.coco_files import coco

NAME = "test_build_evaluator"


@pytest.fixture
def metadata(tmp_path):
    (tmp_path / "instances.json").write_text(json.dumps(coco()))
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text(voc_xml(("a", (1, 1, 8, 8))))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("1")
    yield MetadataCatalog.get(NAME).set(
        json_file=str(tmp_path / "instances.json"),
        dirname=str(tmp_path),
        split="test",
        year=2007,
        gt_dir=str(tmp_path),
        thing_classes=["a"],
        stuff_classes=["a", "b"],
        ignore_label=255,
    )
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize(
    "evaluator_type, semantic, matching, expected",
    [
        ("coco", False, "none", RepairedCOCOEvaluator),
        ("coco", True, "none", SemSegConfusionEvaluator),
        ("coco", True, "hungarian", ClusterSemSegEvaluator),
        ("pascal_voc", False, "none", VOCEvaluator),
        ("cityscapes_instance", False, "none", CityscapesInstanceEvaluator),
        ("cityscapes_sem_seg", True, "none", SemSegConfusionEvaluator),
        ("sem_seg", True, "none", SemSegConfusionEvaluator),
        ("sem_seg", True, "hungarian", ClusterSemSegEvaluator),
        ("cityscapes_sem_seg", True, "hungarian", ClusterSemSegEvaluator),
        ("scenes", False, "hungarian", RepairedCOCOEvaluator),
        ("scenes", True, "none", SemSegConfusionEvaluator),
        ("scenes", True, "hungarian", ClusterSemSegEvaluator),
    ],
)
def test_evaluator_by_type(cfg, metadata, tmp_path, evaluator_type, semantic, matching, expected):
    metadata.evaluator_type = evaluator_type
    cfg.TEST.SEM_SEG_MATCHING = matching
    assert type(build_evaluator(cfg, NAME, str(tmp_path), semantic=semantic)) is expected


def test_a_set_without_evaluator_is_named(cfg, metadata):
    with pytest.raises(
        ValueError, match=rf"dataset {NAME}: evaluator_type None is unknown; known are coco, pascal_voc"
    ):
        build_evaluator(cfg, NAME)


def test_a_set_without_an_evaluator_is_told_before_the_training(cfg, catalog):
    DatasetCatalog.register("lvis_like", lambda: [])
    MetadataCatalog.get("lvis_like").evaluator_type = "lvis"
    cfg.DATASETS.TEST = ("lvis_like",)
    with pytest.raises(ConfigError, match="dataset lvis_like: evaluator_type lvis is unknown"):
        check_evaluators(cfg)
