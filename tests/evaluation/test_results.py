"""What a test of a model leaves in results.json, and what it hands to detectron2's hooks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine.hooks import EvalHook
from detectron2.utils.events import EventStorage
from PIL import Image

from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine.trainer import Trainer
from tests.evaluation.truth_as_predictions import predict
from tests.labels.coco_files import coco, write

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.fixture
def instances(tmp_path):
    """Return a function that registers a set without objects of the named class."""

    def make(absent):
        content = coco()
        content["categories"].append({"id": 3, "name": absent})
        name = f"coco:{write(content, tmp_path / absent)},images={tmp_path / absent}/images"
        register_path_datasets([name])
        return name

    return make


class Oracle(torch.nn.Module):
    """A model that knows the annotations of some datasets."""

    def __init__(self, names):
        super().__init__()
        self.records = {record["file_name"]: record for name in names for record in DatasetCatalog.get(name)}

    def forward(self, batch):
        return [{"instances": predict(self.records[x["file_name"]])} for x in batch]


def numbers_of_the_hook(cfg, model):
    """Return what detectron2's hook stores after training."""
    hook = EvalHook(0, lambda: Trainer.test(cfg, model))
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=1, storage=storage)
        hook.after_train()
        return {key: value for key, (value, _) in storage.latest().items()}


def test_names_are_not_among_the_numbers(instances, cfg, tmp_path):
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path / "out"), 0
    first, second = instances("green"), instances("yellow")
    for names in ((first,), (first, second)):
        cfg.DATASETS.TEST = names
        numbers = numbers_of_the_hook(cfg, Oracle(names))
        written = json.loads((tmp_path / "out" / "results.json").read_text())
        assert list(written) == list(names)
        for name, absent in zip(names, ("green", "yellow"), strict=False):
            key = "" if len(names) == 1 else f"{name}/"
            assert written[name]["absent_classes"] == [absent]
            assert written[name]["bbox"]["AP"] == numbers[f"{key}bbox/AP"] == pytest.approx(100)
            assert written[name]["bbox"][f"AP-{absent}"] is None
        assert not [key for key in numbers if "absent" in key]


def test_label_maps(cfg, tmp_path):
    """Class c has no pixel; a quarter of b's is taken for it."""
    labels = np.zeros((64, 64), np.uint8)
    labels[32:] = 1
    for folder, picture in (("images", np.zeros((64, 64, 3), np.uint8)), ("labels", labels)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "0.png")
    (tmp_path / "labels" / "classes.txt").write_text("a\nb\nc\n")
    name = f"masks:{tmp_path}/images,labels={tmp_path}/labels"
    register_path_datasets([name])
    predicted = torch.from_numpy(labels).clone()
    predicted[48:, :32] = 2
    sem_seg = torch.nn.functional.one_hot(predicted.long(), 3).permute(2, 0, 1).float()
    model = torch.nn.Module()
    model.forward = lambda batch: [{"sem_seg": sem_seg}]
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (name,), 0
    results = Trainer.test(cfg, model)
    written = json.loads((tmp_path / "out" / "results.json").read_text())[name]
    assert written["absent_classes"] == ["c"] and list(results) == ["sem_seg"]
    assert written["sem_seg"]["mIoU"] == pytest.approx((100 + 75 + 0) / 3)
    assert written["sem_seg"]["mIoU_present"] == pytest.approx((100 + 75) / 2)
