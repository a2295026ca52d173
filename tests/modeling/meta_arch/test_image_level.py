"""SimSiam, BYOL, SimCLR: losses against slow references; what the teacher of BYOL is after a step."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from densesiam_d2.modeling.meta_arch import BYOL, SimCLR, SimSiam
from tests.losses import references
from tests.modeling.meta_arch.tiny import assert_close_gradients, gradients, method_cfg, tiny_batch, tiny_model


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def pooled(model, batch, backbone):
    """Yield the pooled features (N, C, 1, 1) of each view."""
    for view in batch["views"].unbind(dim=1):
        view = ((view - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        yield F.adaptive_avg_pool2d(backbone(view)["res5"], 1)


def test_simsiam_equals_the_slow_reference():
    model, batch = tiny_model(method_cfg(SimSiam)), tiny_batch(4)
    losses = step(model, batch)
    z = [model.heads.projector(f) for f in pooled(model, batch, model.backbone)]
    p = [model.heads.predictor(t) for t in z]
    expected = references.symmetric(references.negative_cosine, p[0], z[1], p[1], z[0])
    assert set(losses) == {"loss_image"}
    assert losses["loss_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_image"]), gradients(model, expected))


def test_byol_equals_the_slow_reference():
    """Squared distances of normalised vectors, written out, with the teacher's projections as constants."""
    model, batch = tiny_model(method_cfg(BYOL)), tiny_batch(4)
    model.progress = 0.5
    model.teacher.load_state_dict(tiny_model(method_cfg(BYOL), seed=7).teacher.state_dict())  # another network
    losses = step(model, batch)
    teacher = model.teacher  # updated by the step
    targets = [teacher.projector(f).detach().flatten(1) for f in pooled(model, batch, teacher.backbone)]
    predictions = [model.predictor(model.projector(f)).flatten(1) for f in pooled(model, batch, model.backbone)]
    total = 0
    for p, t in ((predictions[0], targets[1]), (predictions[1], targets[0])):
        for a, b in zip(p, t, strict=True):
            difference = a / a.square().sum().sqrt() - b / b.square().sum().sqrt()
            total = total + difference.square().sum()
    expected = total / 4  # images
    assert losses["loss_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_image"]), gradients(model, expected))


def test_simclr_equals_the_slow_reference():
    """For each of the 2N views: minus the logarithm of its other view's share of the exponentials of all others."""
    model, batch = tiny_model(method_cfg(SimCLR)), tiny_batch(4)
    losses = step(model, batch)
    views = [model.projector(f).flatten(1) for f in pooled(model, batch, model.backbone)]
    rows = [z / z.square().sum().sqrt() for view in views for z in view]  # 0 to 3 are first views, 4 to 7 second
    total = 0
    for i, z in enumerate(rows):
        others = {j: torch.exp((z * other).sum() / 0.1) for j, other in enumerate(rows) if j != i}
        total = total - torch.log(others[(i + 4) % 8] / sum(others.values()))
    expected = total / 4  # the mean over the first views plus the mean over the second
    assert set(losses) == {"loss_image"}
    assert losses["loss_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_image"]), gradients(model, expected))


@pytest.mark.parametrize(
    ("progress", "momentum"),
    [
        (0.0, 0.99),
        (0.5, 1 - 0.01 * (math.cos(math.pi / 2) + 1) / 2),  # 0.995
        (1.0, 1.0),
    ],
)
def test_the_teacher_of_byol_follows_by_its_momentum(progress, momentum):
    model = tiny_model(method_cfg(BYOL))
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.add_(0.5)
    students = {
        f"teacher.{n}": p.clone() for n, p in model.named_parameters() if n.startswith(("backbone", "projector"))
    }
    before = {n: p.clone() for n, p in model.named_parameters() if n.startswith("teacher.")}
    assert students.keys() == before.keys()
    model.progress = progress
    step(model, tiny_batch(4))
    for name, teacher in model.named_parameters():
        if name in before:
            expected = momentum * before[name] + (1 - momentum) * students[name]
            assert torch.allclose(teacher, expected, rtol=1e-5, atol=1e-6), name


def test_byol_without_time_names_the_hook():
    with pytest.raises(RuntimeError, match="ProgressHook"):
        step(tiny_model(method_cfg(BYOL)), tiny_batch())
