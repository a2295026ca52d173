"""ReSim: its losses against loops, pooling of windows by hand, negatives of one or all processes."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    save_backbone,
    save_torchvision,
)
from densesiam_d2.modeling.meta_arch import ReSim
from densesiam_d2.modeling.meta_arch.resim import pool_windows
from densesiam_d2.tools.export_backbone import export_backbone
from tests.checkpoint.networks import fpn_detector
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.tiny import assert_close_gradients, gradients, method_cfg, tiny_batch, tiny_model

VIEW = 64  # pixels, of the views in tiny_batch
# name of the level: side and stride of its windows, stride of its map
LEVELS = {"res3": (32, 24, 8), "res4": (48, 32, 16)}


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def model_with_another_teacher(**keys):
    def build(seed):
        cfg = method_cfg(ReSim)
        for key, value in keys.items():
            cfg.MODEL.RESIM[key] = value
        return tiny_model(cfg, seed)

    model = build(0)
    model.progress = 0.5
    model.teacher.load_state_dict(build(7).teacher.state_dict())
    return model


def overlapping_batch(num=4):
    """Return a batch in which view 2 shows more than view 1 (image 0), is moved (1), flipped (2) or the same (3)."""
    batch = tiny_batch(num)
    boxes = [
        [[20.0, 20, 60, 50], [0, 10, 90, 80]],
        [[0.0, 0, 64, 64], [5, 0, 69, 64]],
        [[10.0, 0, 90, 70], [95, 5, 5, 75]],
        [[50.0, 0, 10, 30], [50, 0, 10, 30]],
    ]
    batch["view_boxes"] = torch.tensor(boxes)[torch.arange(num) % 4]
    return batch


def normed(vector):
    return vector / vector.square().sum().sqrt()


def slow_info_nce(query, key, negatives):
    scores = [torch.exp((query * other).sum() / 0.2) for other in [key, *negatives]]
    return -torch.log(scores[0] / sum(scores))


def value_at(f, y, x):
    """Interpolate an (E, h, w) map bilinearly, with cell i at coordinate i; beyond the last cell its value holds."""
    y, x = (min(max(v, 0.0), side - 1) for v, side in zip((y, x), f.shape[1:], strict=True))
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, f.shape[1] - 1), min(x0 + 1, f.shape[2] - 1)
    b, a = y - y0, x - x0
    return (1 - b) * ((1 - a) * f[:, y0, x0] + a * f[:, y0, x1]) + b * ((1 - a) * f[:, y1, x0] + a * f[:, y1, x1])


def slow_pool(f, window, stride):
    """Mean over points of a window in pixels, spread evenly, about one per cell and side; at least one cell wide."""
    x0, y0, x1, y1 = (v / stride for v in window)
    w, h = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    columns, rows = math.ceil(w), math.ceil(h)
    points = [
        value_at(f, y0 + (i + 0.5) * h / rows, x0 + (j + 0.5) * w / columns)
        for i in range(rows)
        for j in range(columns)
    ]
    return sum(points) / len(points)


def slow_windows(size, stride):
    starts = [s for s in range(0, VIEW, stride) if s + size < VIEW]
    return [(x, y, x + size, y + size) for y in starts for x in starts]


def slow_move(window, box1, box2):
    """Return the window's place in view 2 in pixels, or None if it is not wholly inside."""
    edges = []
    for axis in (0, 1):
        ends = []
        for v in (window[axis], window[axis + 2]):
            point = box1[axis] + (box1[axis + 2] - box1[axis]) * v / VIEW
            ends.append((point - box2[axis]) / (box2[axis + 2] - box2[axis]) * VIEW)
        edges.append(sorted(ends))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1) if min(x0, y0) >= 0 and max(x1, y1) <= VIEW else None


def slow_losses(model, batch, queue):
    q_maps = model.embed(normalised(model, batch, 0), model.backbone, model.head)
    with torch.no_grad():
        k_maps = model.embed(normalised(model, batch, 1), model.teacher.backbone, model.teacher.head)
    boxes = batch["view_boxes"].tolist()
    num = len(boxes)
    losses = {"loss_image": sum(slow_info_nce(q_maps[0][n], k_maps[0][n], queue) for n in range(num)) / num}
    for (name, (size, stride, cell)), q_map, k_map in zip(LEVELS.items(), q_maps[1:], k_maps[1:], strict=True):
        places = [(n, i, j) for n in range(num) for i in range(VIEW // cell - 2) for j in range(VIEW // cell - 2)]
        negatives = [normed(k_map[n, :, i : i + 3, j : j + 3].sum(dim=(1, 2))) for n, i, j in places]
        terms = []
        for n, (box1, box2) in enumerate(boxes):
            for window in slow_windows(size, stride):
                moved = slow_move(window, box1, box2)
                if moved is not None:
                    query = normed(slow_pool(q_map[n], window, cell))
                    key = normed(slow_pool(k_map[n], moved, cell))
                    terms.append(slow_info_nce(query, key, negatives))
        losses[f"loss_windows_{name}"] = sum(terms) / len(terms)
    return losses


def normalised(model, batch, view):
    return ((batch["views"][:, view] - model.pixel_mean) / model.pixel_std).contiguous(
        memory_format=torch.channels_last
    )


def test_losses_equal_the_loops():
    model, batch = model_with_another_teacher(), overlapping_batch()
    queue = model.queue.features.clone()
    losses = step(model, batch)
    expected = slow_losses(model, batch, queue)
    assert losses.keys() == expected.keys() == {"loss_image", "loss_windows_res3", "loss_windows_res4"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4)
        assert_close_gradients(gradients(model, losses[name]), gradients(model, value))


def test_the_maps_are_those_of_a_pyramid_over_three_stages():
    model, batch = model_with_another_teacher(), overlapping_batch()
    x = normalised(model, batch, 0)
    q, p3, p4 = model.embed(x, model.backbone, model.head)
    f, pyramid = model.backbone(x), model.head["pyramid"]
    top4 = pyramid.fpn_lateral4(f["res4"]) + F.interpolate(pyramid.fpn_lateral5(f["res5"]), scale_factor=2.0)
    top3 = pyramid.fpn_lateral3(f["res3"]) + F.interpolate(top4, scale_factor=2.0)
    assert torch.allclose(p4, pyramid.fpn_output4(top4), atol=1e-5)
    assert torch.allclose(p3, pyramid.fpn_output3(top3), atol=1e-5)
    assert torch.allclose(q, F.normalize(model.head["image"](f["res5"].mean(dim=(2, 3), keepdim=True))[..., 0, 0]))


def test_pooling_is_the_integral_for_windows_on_cells():
    # Cells of 8 pixels at coordinates 0, 1, ...; a window of 24 pixels from 8 covers x from 1 to 4. The integral of the
    # interpolated row over it is v1/2 + v2 + v3 + v4/2, divided by 3; columns are constant.
    row = torch.tensor([5.0, 1, 7, 2, 6, 3, 9, 4])
    features = torch.stack([row.expand(8, 8), torch.ones(8, 8)])[None]  # the second channel is 1 everywhere
    (pooled,) = pool_windows(features, torch.tensor([[[8.0, 16, 32, 40]]]), 64)
    expected = torch.tensor([(1 / 2 + 7 + 2 + 6 / 2) / 3, 1.0])
    assert torch.allclose(pooled, expected / expected.norm(), atol=1e-6)


def test_a_window_below_a_cell_is_enlarged_to_one():
    # From x = 1.5 cells, 0.25 wide: as 1 wide, with its centre at 2.
    features = torch.stack([torch.tensor([5.0, 1, 7, 2]).expand(4, 4), torch.ones(4, 4)])[None]
    (pooled,) = pool_windows(features, torch.tensor([[[12.0, 8, 14, 16]]]), 32)
    expected = torch.tensor([7.0, 1.0])
    assert torch.allclose(pooled, expected / expected.norm(), atol=1e-6)


def test_without_a_window_in_both_views_the_losses_of_windows_are_zero():
    model, batch = model_with_another_teacher(), overlapping_batch()
    batch["view_boxes"][:, 1] += 1000
    losses = step(model, batch)
    for name in ("loss_windows_res3", "loss_windows_res4"):
        assert losses[name].item() == 0
        assert all((grad == 0).all() for grad in gradients(model, losses[name]).values())
    assert losses["loss_image"] > 0


def losses_of_a_share(rank, world_size):
    model, batch = model_with_another_teacher(), overlapping_batch(8)
    for module in model.modules():
        module.training = module is model  # statistics are fixed, so that a feature depends on its own image only
    num = 8 // world_size
    losses = step(model, {key: values[rank * num : rank * num + num] for key, values in batch.items()})
    return {name: loss.item() for name, loss in losses.items()}


def test_negatives_of_res4_come_from_all_processes_and_those_of_res3_from_one():
    first, second = in_two_processes(lambda rank: losses_of_a_share(rank, 2))
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    whole = losses_of_a_share(0, 1)
    halves = [losses_of_a_share(rank, 2) for rank in range(2)]  # without a process group: own negatives only
    alone = {name: (halves[0][name] + halves[1][name]) / 2 for name in first}
    assert mean["loss_windows_res4"] == pytest.approx(whole["loss_windows_res4"], rel=1e-5)
    assert mean["loss_windows_res3"] == pytest.approx(alone["loss_windows_res3"], rel=1e-5)
    for name in ("loss_windows_res3", "loss_windows_res4"):
        assert abs(whole[name] - alone[name]) > 0.1  # about log 2 more with twice as many negatives


def test_the_teacher_follows_backbone_head_and_pyramid():
    model, momentum = model_with_another_teacher(), 0.999
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    assert any(name.startswith("head.pyramid.fpn_lateral5") for name in before)
    step(model, overlapping_batch())
    for name, old in before.items():
        expected = momentum * old + (1 - momentum) * model.get_parameter(name)
        assert torch.allclose(model.teacher.get_parameter(name), expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("way", ["at the end of a training", "by the tool", "as it is"])
def test_the_pyramid_fills_the_fpn_of_a_detector(way, tmp_path):
    cfg = method_cfg(ReSim, depth=18)
    model = tiny_model(cfg)
    model.teacher.load_state_dict(tiny_model(cfg, seed=7).teacher.state_dict())  # must not be taken
    weights = tmp_path / "backbone.pkl"
    if way == "at the end of a training":
        save_backbone(weights, backbone_state(model), backbone_metadata(cfg, 1))
    else:
        CheckedCheckpointer(model, str(tmp_path), expect=expected_metadata(cfg)).save("model_final")
        if way == "by the tool":
            export_backbone(tmp_path / "model_final.pth", weights)
        else:
            weights = tmp_path / "model_final.pth"
    detector = fpn_detector(18, seed=3)  # 8 channels, as the pyramid
    CheckedCheckpointer(detector).resume_or_load(str(weights), resume=False)
    layers = model.head["pyramid"].state_dict()
    assert len(layers) == 2 * (3 + 2)
    for name, value in layers.items():
        assert torch.equal(detector.backbone.state_dict()[name], value), name
    assert torch.equal(detector.backbone.bottom_up.stem.conv1.weight, model.backbone.stem.conv1.weight)


def test_torchvisions_file_holds_no_pyramid(tmp_path):
    save_torchvision(tmp_path / "resnet18.pth", backbone_state(tiny_model(method_cfg(ReSim, depth=18))))
    assert not [name for name in torch.load(tmp_path / "resnet18.pth", weights_only=True) if "fpn" in name]


def test_a_view_too_small_for_the_places_of_negatives_is_refused():
    cfg = method_cfg(ReSim)
    cfg.INPUT.SSL.VIEW_SIZE, cfg.MODEL.RESIM.WINDOW_SIZES = 32, [8, 16]
    with pytest.raises(ValueError, match=r"INPUT.SSL.VIEW_SIZE 32 gives maps of fewer than 3 x 3 cells"):
        tiny_model(cfg)
