"""SlotConSegmentor: each pixel gets the prototype with the best cosine, by the teacher; also in tools.segment."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from densesiam_d2.config_checks import check_config
from densesiam_d2.modeling import model_output, num_label_ids
from densesiam_d2.modeling.meta_arch import SlotCon, SlotConSegmentor
from densesiam_d2.tools import segment
from tests.data.photos import smooth_image
from tests.losses import slot_references as references
from tests.modeling.meta_arch.tiny import method_cfg, tiny_batch, tiny_model


def segmentor(output="logits"):
    cfg = method_cfg(SlotConSegmentor)
    cfg.TEST.SEM_SEG_OUTPUT = output
    model = tiny_model(cfg).eval()
    teacher = model.teacher
    teacher.load_state_dict(tiny_model(method_cfg(SlotConSegmentor), seed=7).teacher.state_dict())
    with torch.no_grad():  # projections around 0, so that several prototypes win
        z = teacher.projector(teacher.backbone(model.preprocess_image(image(128, 128)))["res5"])
        teacher.projector[-1].bias -= z.mean(dim=(0, 2, 3))
    return model


def image(height, width):
    return torch.from_numpy(smooth_image(height, width).transpose(2, 0, 1).copy())


@torch.no_grad()
def test_logits_are_the_cosines_with_the_teachers_prototypes():
    model = segmentor()
    x = image(96, 64)
    (output,) = model([{"image": x}])
    teacher = model.teacher
    x = ((x - model.pixel_mean) / model.pixel_std)[None]
    scores = references.scores(teacher.projector(teacher.backbone(x)["res5"]), teacher.prototypes.weight)
    expected = F.interpolate(scores, scale_factor=32, mode="bilinear")[0]  # the cells of res5 are 32 pixels wide
    assert output["sem_seg"].shape == (12, 96, 64)
    assert torch.allclose(output["sem_seg"], expected, atol=1e-4)
    assert len(expected.argmax(dim=0).unique()) > 1


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, None), (70, 99, None), (70, 99, (140, 50))])
def test_labels_are_the_argmax_of_logits(height, width, size):
    x = {"image": image(height, width), **(dict(zip(("height", "width"), size, strict=True)) if size else {})}
    (logits,), (labels,) = segmentor()([x]), segmentor("labels")([x])
    assert labels["num_classes"] == 12 and logits["sem_seg"].shape == (12, *(size or (height, width)))
    assert len(labels["sem_seg_labels"].unique()) > 1
    assert (labels["sem_seg_labels"] == logits["sem_seg"].argmax(dim=0)).float().mean() > 0.999


def test_training_is_that_of_slotcon():
    cfg = method_cfg(SlotConSegmentor)
    losses = []
    for method in (SlotCon, SlotConSegmentor):
        cfg.MODEL.META_ARCHITECTURE = method.__name__
        model = tiny_model(cfg)
        model.progress = 0.5
        with EventStorage(1):
            losses.append({name: loss.item() for name, loss in model(tiny_batch(4)).items()})
    assert losses[0] == losses[1]


def test_prototypes_are_the_clusters():
    cfg = method_cfg(SlotConSegmentor, depth=18)
    assert model_output(cfg) == "semantic"
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ("imagenet_train",)
    check_config(cfg)
    assert num_label_ids(cfg) == cfg.MODEL.SLOTCON.SLOTS == 12 != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_the_tool_draws_its_segments(tmp_path):
    cfg = method_cfg(SlotConSegmentor)
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = "RGB", 64
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["MODEL"]["SLOTCON"]["SLOTS"] == 12
    torch.save({"model": segmentor().state_dict()}, tmp_path / "model.pth")
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), smooth_image(80, 100))
    words = ["--config-file", "config.yaml", "--weights", "model.pth", "--input", "in", "--output", "out"]
    assert segment.main([w if w.startswith("--") else str(tmp_path / w) for w in words]) == 0
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (80, 100) and len(np.unique(labels)) > 1
    assert len(json.loads((tmp_path / "out" / "classes.json").read_text())) == 12
