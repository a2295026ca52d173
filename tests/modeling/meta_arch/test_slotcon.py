"""SlotCon: the whole step against slow loops, its alignment, centre, teacher, and processes without a slot."""

import copy
import itertools
import math

import pytest
import torch
import torchvision
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import nn

from densesiam_d2.config_checks import check_config
from densesiam_d2.geometry import overlap_boxes, overlap_grids, sample
from densesiam_d2.modeling.meta_arch import SlotCon
from tests.evaluation.processes import in_two_processes
from tests.losses import slot_references as references
from tests.modeling.meta_arch.tiny import assert_close_gradients, gradients, method_cfg, tiny_batch, tiny_model


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def model_with_another_teacher(norm="BN"):
    cfg = method_cfg(SlotCon, norm=norm)
    model = tiny_model(cfg)
    model.progress = 0.5
    model.teacher.load_state_dict(tiny_model(cfg, seed=7).teacher.state_dict())
    model.center.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    return model


def released_alignment(maps, boxes, other):
    """RoIAlign of the overlap's rectangle in feature coordinates of a view; a flipped view is flipped back."""
    aligned = []
    for one, box, overlap in zip(maps, boxes.tolist(), overlap_boxes(boxes, other)[0].tolist(), strict=True):
        left, right = sorted((overlap[i] - box[0]) / (box[2] - box[0]) * one.shape[2] for i in (0, 2))
        top, bottom = ((overlap[i] - box[1]) / (box[3] - box[1]) * one.shape[1] for i in (1, 3))
        rectangle = torch.tensor([[0, left, top, right, bottom]])
        cells = torchvision.ops.roi_align(one[None], rectangle, one.shape[1:], aligned=True)[0]
        aligned.append(cells.flip(-1) if box[0] > box[2] else cells)
    return torch.stack(aligned)


def test_common_points_are_those_of_roi_align():
    """Each of 40 random pairs of crops of 100 x 80 pixels, half of them flipped; points in the order of view 1."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 40, 2, 2, generator=generator).sort(dim=2).values * torch.tensor([100.0, 80.0])
    flips = torch.rand(2, 40, generator=generator) < 0.5
    boxes = torch.where(flips[..., None], corners.flatten(2)[..., [2, 1, 0, 3]], corners.flatten(2))
    grids = overlap_grids(*boxes, 7)
    for maps, own, other, grid in zip(
        torch.randn(2, 40, 3, 7, 7, generator=generator), boxes, boxes.flip(0), grids[:2], strict=True
    ):
        points = sample(maps, grid)
        points = torch.where(flips[0][:, None, None, None], points.flip(-1), points)  # to the order of the image
        expected = released_alignment(maps, own, other)
        assert grids[2].sum() > 10
        assert torch.allclose(points[grids[2]], expected[grids[2]], atol=1e-4)


def test_the_step_equals_the_slow_reference():
    """Losses, their gradients and the new centre; one of four images has no overlap."""
    model, batch = model_with_another_teacher(), tiny_batch(4)
    batch["view_boxes"][1, 1] += 1000
    overlapping = torch.tensor([0, 2, 3])
    old = model.center.clone()
    losses = step(model, batch)

    boxes = batch["view_boxes"].unbind(dim=1)
    z, s, zt, st = [], [], [], []
    for x in batch["views"].unbind(dim=1):
        x = ((x - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        z.append(model.projector(model.backbone(x)["res5"]))
        s.append(references.scores(z[-1], model.prototypes.weight))
        with torch.no_grad():
            zt.append(model.teacher.projector(model.teacher.backbone(x)["res5"]))
            st.append(references.scores(zt[-1], model.teacher.prototypes.weight))
    a, at = ([released_alignment(maps[i], boxes[i], boxes[1 - i])[overlapping] for i in range(2)] for maps in (s, st))
    group = sum(references.grouping(a[i], at[1 - i], old, 0.1, 0.07) for i in range(2))
    g = [references.slots(z[i], s[i], 0.07) for i in range(2)]
    gt = [references.slots(zt[i], st[i], 0.07) for i in range(2)]

    def predict(rows):
        return model.predictor(rows[:, :, None, None]).flatten(1)

    contrast = sum(references.contrast(g[i], s[i], gt[1 - i], st[1 - i], predict, 0.2) for i in range(2))
    assert set(losses) == {"loss_group", "loss_slot"}
    assert losses["loss_group"].item() == pytest.approx(0.5 * group.item(), rel=1e-4)
    assert losses["loss_slot"].item() == pytest.approx(0.5 * contrast.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_group"]), gradients(model, 0.5 * group))
    assert_close_gradients(gradients(model, losses["loss_slot"]), gradients(model, 0.5 * contrast))
    assert torch.allclose(model.center, references.center(old, *st, momentum=0.9), atol=1e-5)


def test_the_weight_divides_between_both_losses():
    model, batch = model_with_another_teacher(), tiny_batch(4)
    other = copy.deepcopy(model)
    other.group_weight = 0.9
    half, uneven = step(model, batch), step(other, batch)
    assert uneven["loss_group"].item() == pytest.approx(half["loss_group"].item() * 0.9 / 0.5, rel=1e-5)
    assert uneven["loss_slot"].item() == pytest.approx(half["loss_slot"].item() * 0.1 / 0.5, rel=1e-4)


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.99), (0.5, 1 - 0.01 * (math.cos(math.pi / 2) + 1) / 2)])
def test_the_teacher_follows_by_its_momentum(progress, momentum):
    model = model_with_another_teacher()
    model.progress = progress
    names = ("backbone", "projector", "prototypes")
    students = {f"teacher.{n}": p.clone() for n, p in model.named_parameters() if n.startswith(names)}
    before = {n: p.clone() for n, p in model.named_parameters() if n.startswith("teacher.")}
    assert students.keys() == before.keys()
    step(model, tiny_batch(4))
    for name, teacher in model.teacher.named_parameters():
        name = f"teacher.{name}"
        expected = momentum * before[name] + (1 - momentum) * students[name]
        assert torch.allclose(teacher, expected, rtol=1e-5, atol=1e-6), name


def test_no_prediction_without_two_slots():
    """Student and teacher never agree: no row. They agree on slot 0 of the first image only: one row."""
    model = model_with_another_teacher()
    g = torch.randn(2, 12, 8, requires_grad=True)
    s, st = torch.zeros(2, 12, 2, 2), torch.zeros(2, 12, 2, 2)
    s[:, 0], st[:, 1] = 1, 1
    statistics = [buffer.clone() for buffer in model.predictor.buffers()]
    for _ in range(2):
        loss = model.slot_loss(g, s, g.detach(), st)
        model.predictor.zero_grad()
        loss.backward()
        assert loss.item() == 0 and all((p.grad == 0).all() for p in model.predictor.parameters())
        assert all(torch.equal(a, b) for a, b in zip(statistics, model.predictor.buffers(), strict=True))
        st[0, 0, 0, 0] = 2


def slot_gradients(rank, world_size, idle):
    """Return the predictor's mean gradients and statistics; the images of process ``idle`` have no query."""
    torch.manual_seed(0)
    cfg = method_cfg(SlotCon, norm="naiveSyncBN_N" if world_size > 1 else "BN")
    model = tiny_model(cfg)
    generator = torch.Generator().manual_seed(0)
    g, gt = torch.randn(2, 4, 12, 8, generator=generator)
    s, st = torch.randn(2, 4, 12, 2, 2, generator=generator)
    st = s.roll(1, dims=0) + 0.5 * st
    s[:2], s[2:, 0], st[2:, 1] = st[:2], 9, 9  # the first two agree, the others do not
    g, gt, s, st = (x.roll(2 - 2 * idle, dims=0) for x in (g, gt, s, st))
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    loss = model.slot_loss(g[share], s[share], gt[share], st[share])
    loss.backward()
    assert loss.isfinite() and (loss.item() == 0) == (world_size > 1 and rank == idle)
    gradients = {name: p.grad for name, p in model.predictor.named_parameters()}
    if world_size > 1:
        for grad in gradients.values():
            dist.all_reduce(grad)
            grad /= world_size
    return gradients, {name: b for name, b in model.predictor.named_buffers() if name.endswith("mean")}


@pytest.mark.parametrize("idle", [0, 1])
def test_a_process_without_a_slot_waits_for_the_others_and_counts_nothing(idle):
    one, mean = slot_gradients(0, 1, idle)
    (two, mean0), (other, mean1) = in_two_processes(lambda rank: slot_gradients(rank, 2, idle))
    assert all(torch.equal(two[name], other[name]) for name in two)
    assert max(grad.abs().max() for grad in one.values()) > 1e-3
    assert_close_gradients(two, one)
    for name, value in mean.items():
        assert torch.equal(mean0[name], mean1[name]) and torch.allclose(mean0[name], value, atol=1e-5)


def test_norms_that_need_slots_in_each_process_are_refused():
    def refused(rank):
        for norm in ("BN", "naiveSyncBN"):
            with pytest.raises(ValueError, match=rf"NORM is '{norm}'; with several processes .*: set SyncBN"):
                tiny_model(method_cfg(SlotCon, norm=norm))
        return True

    assert all(in_two_processes(refused))


def center_of_a_share(rank, world_size):
    model = model_with_another_teacher("naiveSyncBN_N")
    generator = torch.Generator().manual_seed(0)
    st1, st2 = torch.rand(2, 4, 12, 2, 2, generator=generator)[:, rank::world_size]
    model.update_center(st1, st2)
    return model.center


def test_all_processes_have_the_centre_of_all_images():
    one = center_of_a_share(0, 1)
    two, other = in_two_processes(lambda rank: center_of_a_share(rank, 2))
    assert torch.equal(two, other) and torch.allclose(two, one, atol=1e-6)


def test_losses_and_predictor_stay_in_float32_under_autocast():
    """A process without rows must send the same type as the others, and nn.SyncBatchNorm takes that of its input."""
    model, batch = model_with_another_teacher(), tiny_batch(4)
    types = set()
    for module in model.predictor:
        module.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(model, batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert model.center.dtype == torch.float32 and types == {torch.float32}


def test_heads_start_as_published():
    cfg = method_cfg(SlotCon)
    cfg.MODEL.SLOTCON.HIDDEN_DIM = 512
    model = tiny_model(cfg)
    for head, widths in ((model.projector, [128, 512, 512, 8]), (model.predictor, [8, 512, 512, 8])):
        assert [type(layer).__name__ for layer in head] == ["PointConv2d", "BatchNorm2d", "GELU"] * 2 + ["PointConv2d"]
        convs = [layer for layer in head if isinstance(layer, nn.Conv2d)]
        assert [(c.in_channels, c.out_channels) for c in convs] == list(itertools.pairwise(widths))
        assert all((c.bias == 0).all() for c in convs)
        assert all(c.weight.std().item() == pytest.approx(0.02, rel=0.1) for c in convs)
    assert torch.equal(model.teacher.prototypes.weight, model.prototypes.weight)
    assert model.prototypes.weight.shape == (12, 8)


def test_without_time_the_hook_is_named():
    with pytest.raises(RuntimeError, match="ProgressHook"):
        step(tiny_model(method_cfg(SlotCon)), tiny_batch())


def test_wrong_values_are_named():
    cfg = method_cfg(SlotCon)
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ("imagenet_train",)
    cfg.MODEL.SLOTCON.SLOTS, cfg.MODEL.SLOTCON.GROUP_WEIGHT = 1, 1.5
    with pytest.raises(
        ValueError, match=r"SLOTS is 1; it must be > 1(?s:.*)GROUP_WEIGHT is 1\.5; it must be in \[0, 1\]"
    ):
        check_config(cfg)
