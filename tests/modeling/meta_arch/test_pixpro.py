"""PixPro: its losses against loops, which modules it has, and a teacher that follows all of them."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.layers import PixelPropagation
from densesiam_d2.modeling.meta_arch import PixPro
from tests.modeling.meta_arch.tiny import assert_close_gradients, gradients, method_cfg, tiny_batch, tiny_model


def pixpro_cfg(**keys):
    cfg = method_cfg(PixPro)
    for key, value in keys.items():
        cfg.MODEL.PIXPRO[key] = value
    return cfg


def model_with_another_teacher(cfg):
    model = tiny_model(cfg)
    model.progress = 0.5
    model.teacher.load_state_dict(tiny_model(cfg, seed=7).teacher.state_dict())
    return model


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def maps(model, batch, backbone):
    """Yield the feature map (N, C, h, w) of each view."""
    for view in batch["views"].unbind(dim=1):
        view = ((view - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        yield backbone(view)["res5"]


def cosine(a, b):
    return (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()


def centre(box, row, column, size):
    """Return the centre of a cell in pixels of the image; a flipped box runs from right to left."""
    x0, y0, x1, y1 = box
    return x0 + (x1 - x0) * (column + 0.5) / size, y0 + (y1 - y0) * (row + 0.5) / size


def is_pair(box1, cell1, box2, cell2, size, threshold):
    """Distance of two cells' centres in the image, in diagonals of the larger cell, below the threshold."""
    (ax, ay), (bx, by) = centre(box1, *cell1, size), centre(box2, *cell2, size)
    diagonals = [math.hypot((b[2] - b[0]) / size, (b[3] - b[1]) / size) for b in (box1, box2)]
    return math.hypot(ax - bx, ay - by) / max(diagonals) < threshold


def propagated(z, transform, sharpness):
    """Sum over all cells j of max(cos(x_i, x_j), 0)^sharpness times the unit vector of transform(x)_j."""
    values = transform(z)
    out = torch.zeros_like(z)
    N, _, h, w = z.shape
    cells = [(r, c) for r in range(h) for c in range(w)]
    for n in range(N):
        for r, c in cells:
            total = 0
            for a, b in cells:
                weight = cosine(z[n, :, r, c], z[n, :, a, b]).clamp(min=0) ** sharpness
                value = values[n, :, a, b]
                total = total + weight * value / (value * value).sum().sqrt()
            out[n, :, r, c] = total
    return out


def one_direction(p, t, boxes_p, boxes_t, threshold):
    """-2 times the mean over images of the mean cosine over an image's pairs; an image without pairs counts as 0."""
    N, _, h, w = p.shape
    cells = [(r, c) for r in range(h) for c in range(w)]
    per_image = []
    for n in range(N):
        cosines = [
            cosine(p[n, :, r, c], t[n, :, a, b])
            for r, c in cells
            for a, b in cells
            if is_pair(boxes_p[n], (r, c), boxes_t[n], (a, b), h, threshold)
        ]
        per_image.append(sum(cosines) / len(cosines) if cosines else torch.zeros(()))
    return -2 * sum(per_image) / N


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_pixel_loss_equals_the_loops(layers):
    """Four images: two partial overlaps (one view is flipped), and two of the same with one view moved far away."""
    cfg = pixpro_cfg(TRANSFORM_LAYERS=layers)
    model, batch = model_with_another_teacher(cfg), tiny_batch(4)
    batch["view_boxes"][3, 1] += 1000
    losses = step(model, batch)
    assert set(losses) == {"loss_pixel"}
    t = [model.teacher.projector(f).detach() for f in maps(model, batch, model.teacher.backbone)]
    z = [model.projector(f) for f in maps(model, batch, model.backbone)]
    p = [propagated(x, model.propagation.transform, 2) for x in z]
    boxes1, boxes2 = (boxes.tolist() for boxes in batch["view_boxes"].unbind(dim=1))
    expected = one_direction(p[0], t[1], boxes1, boxes2, 0.7) + one_direction(p[1], t[0], boxes2, boxes1, 0.7)
    assert losses["loss_pixel"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_pixel"]), gradients(model, expected))


def test_instance_loss_equals_the_loops():
    model, batch = model_with_another_teacher(pixpro_cfg(INSTANCE_WEIGHT=0.5)), tiny_batch(4)
    losses = step(model, batch)
    assert set(losses) == {"loss_pixel", "loss_image"}

    def averaged(x):
        return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])

    t = [averaged(model.teacher.instance_projector(f)).detach() for f in maps(model, batch, model.teacher.backbone)]
    p = [averaged(model.instance_predictor(model.instance_projector(f))) for f in maps(model, batch, model.backbone)]
    total = sum(cosine(p[v][n], t[1 - v][n]) for v in range(2) for n in range(4))
    expected = 0.5 * -2 * total / 4
    assert losses["loss_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_image"]), gradients(model, expected))


def test_propagation_by_hand():
    # Three unit vectors: (1, 0), (0.6, 0.8), (-1, 0). Cosines 0.6 (squared 0.36), -1 and -0.6 (both clamped to 0).
    x = torch.tensor([[1.0, 0.6, -1.0], [0.0, 0.8, 0.0]])[None, :, None]  # (1, 2, 1, 3)
    out = PixelPropagation(nn.Identity(), 2.0)(5 * x)  # scale does not matter
    # Cell 1: (1, 0) + 0.36 (0.6, 0.8). Cell 2: 0.36 (1, 0) + (0.6, 0.8). Cell 3: itself.
    expected = torch.tensor([[1.216, 0.96, -1.0], [0.288, 0.8, 0.0]])[None, :, None]
    assert torch.allclose(out, expected, atol=1e-6)


def test_without_a_weight_there_is_no_instance_branch():
    model = tiny_model(pixpro_cfg())
    assert not [name for name, _ in model.named_parameters() if "instance" in name]


def test_the_teacher_follows_backbone_and_both_projectors_by_its_momentum():
    model = model_with_another_teacher(pixpro_cfg(INSTANCE_WEIGHT=1.0))
    followed = ("backbone.", "projector.", "instance_projector.")
    students = {f"teacher.{n}": p.clone() for n, p in model.named_parameters() if n.startswith(followed)}
    before = {n: p.clone() for n, p in model.named_parameters() if n.startswith("teacher.")}
    assert students.keys() == before.keys()
    step(model, tiny_batch(4))
    momentum = 1 - 0.01 * (math.cos(math.pi / 2) + 1) / 2  # 0.995 in the middle of the training
    for name, teacher in model.named_parameters():
        if name in before:
            expected = momentum * before[name] + (1 - momentum) * students[name]
            assert torch.allclose(teacher, expected, rtol=1e-5, atol=1e-6), name


def test_a_batch_without_any_pair_gives_no_gradient():
    model, batch = model_with_another_teacher(pixpro_cfg()), tiny_batch(2)
    batch["view_boxes"][:, 1] += 1000
    loss = step(model, batch)["loss_pixel"]
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in gradients(model, loss).values())
