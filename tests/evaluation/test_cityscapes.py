import importlib.util
import inspect
import sys
import types

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import cityscapes as d2_cityscapes
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.evaluation import CityscapesSemSegEvaluator, cityscapes_evaluation
from detectron2.structures import Instances
from PIL import Image

from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.evaluation.cityscapes import CityscapesInstanceEvaluator, ensure_cityscapes_api
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator
from tests.data_trees import real_data, write_cityscapes_tree
from tests.evaluation.processes import in_two_processes

pytest.importorskip("cityscapesscripts")
pytest.importorskip("shapely")

ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"
INSTANCES, SEMANTIC = "test_camvid_instance_seg", "test_camvid_sem_seg"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """CamVid's first validation images as Cityscapes, registered as detectron2 registers Cityscapes."""
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes_tree(real_data("camvid"), root, 4, splits=("val",))
    image_dir, gt_dir = f"{root}/leftImg8bit/val/", f"{root}/gtFine/val/"
    meta = {"image_dir": image_dir, "gt_dir": gt_dir, **_get_builtin_metadata("cityscapes")}
    load = d2_cityscapes.load_cityscapes_instances
    DatasetCatalog.register(INSTANCES, lambda: load(image_dir, gt_dir, from_json=False, to_polygons=False))
    MetadataCatalog.get(INSTANCES).set(evaluator_type="cityscapes_instance", **meta)
    DatasetCatalog.register(SEMANTIC, lambda: d2_cityscapes.load_cityscapes_semantic(image_dir, gt_dir))
    MetadataCatalog.get(SEMANTIC).set(evaluator_type="cityscapes_sem_seg", ignore_label=255, **meta)
    yield root
    for name in (INSTANCES, SEMANTIC):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def fresh_imports(monkeypatch):
    """Forget the alias for one test."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "deeplearning"]:
        monkeypatch.delitem(sys.modules, name)


def as_official_main(module, name):
    """Return a copy of a detectron2 module that imports the scripts from where official main does."""
    source = inspect.getsource(module)
    for statement in ("from", "import"):
        source = source.replace(f"{statement} cityscapesscripts", f"{statement} {ALIAS}")
    assert f"from {ALIAS}" in source and "from cityscapesscripts" not in source
    copy = types.ModuleType(name)
    copy.__package__ = module.__package__
    sys.modules[name] = copy  # worker processes look functions up by module name
    exec(compile(source, name, "exec"), copy.__dict__)
    return copy


def perfect_instances(dataset_dict):
    masks = [mask_util.decode(a["segmentation"]).astype(bool) for a in dataset_dict["annotations"]]
    classes = [a["category_id"] for a in dataset_dict["annotations"]]
    return Instances(
        (dataset_dict["height"], dataset_dict["width"]),
        pred_masks=torch.from_numpy(np.stack(masks)),
        pred_classes=torch.tensor(classes),
        scores=torch.linspace(0.9, 0.8, len(classes)),
    )


def score(evaluator, dataset_dicts, outputs):
    evaluator.reset()
    evaluator.process(dataset_dicts, outputs)
    return evaluator.evaluate()


def test_without_the_alias_official_main_fails(fresh_imports):
    with pytest.raises(ModuleNotFoundError, match="deeplearning"):
        from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels import labels  # noqa: F401


def test_official_mains_import_statements(fresh_imports):
    ensure_cityscapes_api()
    ensure_cityscapes_api()
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as real_eval  # noqa: N813
    import deeplearning.projects.cityscapesApi.cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as alias_eval  # noqa: N813
    from cityscapesscripts.helpers.labels import name2label as real_labels
    from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels import name2label as alias_labels

    assert alias_labels is real_labels
    assert alias_eval is real_eval  # one module, so that its global `args` is one, too
    assert real_eval.__name__ == "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    assert real_eval.__spec__.name == real_eval.__name__
    with pytest.raises(ModuleNotFoundError):
        import deeplearning.projects.another  # noqa: F401


def test_a_real_package_of_that_name_stays(fresh_imports, monkeypatch, tmp_path):
    (tmp_path / "deeplearning").mkdir()
    (tmp_path / "deeplearning" / "__init__.py").write_text("REAL = True")
    monkeypatch.syspath_prepend(tmp_path)
    ensure_cityscapes_api()
    import deeplearning
    from deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels import labels

    assert deeplearning.REAL and len(labels) == 35


def test_ground_truth_instances_score_100(tree):
    dataset_dicts = DatasetCatalog.get(INSTANCES)
    assert len(dataset_dicts) == 4 and all(len(d["annotations"]) > 5 for d in dataset_dicts)
    outputs = [{"instances": perfect_instances(d)} for d in dataset_dicts]
    results = score(CityscapesInstanceEvaluator(INSTANCES), dataset_dicts, outputs)
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100})


def test_classes_without_an_instance_are_named(tree, caplog):
    dataset_dicts = DatasetCatalog.get(INSTANCES)
    classes = MetadataCatalog.get(INSTANCES).thing_classes
    present = {classes[a["category_id"]] for d in dataset_dicts for a in d["annotations"]}
    evaluator = CityscapesInstanceEvaluator(INSTANCES)
    score(evaluator, dataset_dicts, [{"instances": perfect_instances(d)} for d in dataset_dicts])
    assert set(evaluator.absent_classes) == set(classes) - present and "train" in evaluator.absent_classes
    assert any(message.startswith(f"{INSTANCES}: classes without any instance (") for message in caplog.messages)


def test_classes_of_another_order_are_scored_by_name(tree, cfg):
    dataset_dicts = DatasetCatalog.get(INSTANCES)
    classes = MetadataCatalog.get(INSTANCES).thing_classes
    cfg.MODEL.CLASS_NAMES = sorted(classes)
    assert classes != cfg.MODEL.CLASS_NAMES
    outputs = [{"instances": perfect_instances(d)} for d in dataset_dicts]
    for output in outputs:
        numbers = output["instances"].pred_classes.tolist()
        output["instances"].pred_classes = torch.tensor([sorted(classes).index(classes[n]) for n in numbers])
    results = score(build_evaluator(cfg, INSTANCES), dataset_dicts, outputs)
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100})
    outputs[0]["instances"].pred_classes[0] = 8
    with pytest.raises(ValueError, match=f"{INSTANCES} has 8 classes, but the model predicts number 8"):
        score(build_evaluator(cfg, INSTANCES), dataset_dicts, outputs)


def test_two_processes_score_as_one(tree):
    dataset_dicts = DatasetCatalog.get(INSTANCES)
    outputs = [{"instances": perfect_instances(d)} for d in dataset_dicts]
    main, other = in_two_processes(
        lambda rank: score(CityscapesInstanceEvaluator(INSTANCES), dataset_dicts[rank::2], outputs[rank::2])
    )
    assert main["segm"] == pytest.approx({"AP": 100, "AP50": 100})
    assert other is None


def test_missing_instances_score_less(tree, tmp_path, monkeypatch):
    dataset_dicts = DatasetCatalog.get(INSTANCES)
    outputs = [{"instances": perfect_instances(d)} for d in dataset_dicts]
    outputs[0]["instances"] = outputs[0]["instances"][:0]
    monkeypatch.chdir(tmp_path)
    results = score(CityscapesInstanceEvaluator(INSTANCES), dataset_dicts, outputs)
    assert 40 < results["segm"]["AP"] < 95
    assert not list(tmp_path.iterdir())  # the scripts would leave a "matches.json" in the current directory
    stock = score(cityscapes_evaluation.CityscapesInstanceEvaluator(INSTANCES), dataset_dicts, outputs)
    assert results["segm"] == pytest.approx(stock["segm"], abs=1e-9)


def test_loader_and_evaluator_of_official_main(tree, fresh_imports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the stock evaluator leaves a file there
    loader = as_official_main(d2_cityscapes, "densesiam_d2_test_main_loader")
    evaluation = as_official_main(cityscapes_evaluation, "densesiam_d2_test_main_evaluation")
    ensure_cityscapes_api([INSTANCES])
    arguments = (f"{tree}/leftImg8bit/val/", f"{tree}/gtFine/val/")
    dataset_dicts = loader.load_cityscapes_instances(*arguments, from_json=False, to_polygons=False)
    from_json = loader.load_cityscapes_instances(*arguments, from_json=True)
    assert [len(d["annotations"]) for d in dataset_dicts] == [len(d["annotations"]) for d in from_json]
    outputs = [{"instances": perfect_instances(d)} for d in dataset_dicts]
    results = score(evaluation.CityscapesInstanceEvaluator(INSTANCES), dataset_dicts, outputs)
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100})


def test_semantic_miou_equals_the_official_scripts(tree):
    ensure_cityscapes_api()
    dataset_dicts = DatasetCatalog.get(SEMANTIC)
    generator = np.random.default_rng(0)
    outputs = []
    for d in dataset_dicts:
        labels = np.asarray(Image.open(d["sem_seg_file_name"]))
        wrong = generator.integers(0, 19, labels.shape)  # also classes that CamVid does not have
        labels = np.where((labels == 255) | (generator.random(labels.shape) < 0.2), wrong, np.roll(labels, 5, axis=1))
        labels = np.where(labels == 255, wrong, labels)
        outputs.append({"sem_seg": torch.nn.functional.one_hot(torch.from_numpy(labels), 19).permute(2, 0, 1).float()})
    official = score(CityscapesSemSegEvaluator(SEMANTIC), dataset_dicts, outputs)["sem_seg"]["IoU"]
    ours = score(SemSegConfusionEvaluator(SEMANTIC), dataset_dicts, outputs)["sem_seg"]["mIoU"]
    assert 5 < official < 80
    assert ours == pytest.approx(official, abs=1e-6)


def test_other_datasets_need_nothing(fresh_imports, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ensure_cityscapes_api(["coco_2017_val", "cityscapes_fine_sem_seg_val"])
    with pytest.raises(
        ImportError, match=r"need cityscapesscripts and shapely: pip install 'densesiam_d2\[cityscapes\]'"
    ):
        ensure_cityscapes_api(["coco_2017_val", "cityscapes_fine_instance_seg_val"])
