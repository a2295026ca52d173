"""DenseSiam in pretraining: one step on every backbone, stop-gradient, overlap, schedule, metrics, collapse."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from densesiam_d2.checkpoint import backbone_state
from densesiam_d2.geometry import overlap_grids
from densesiam_d2.losses import negative_cosine
from densesiam_d2.modeling.consistency import encoded_views, project_points
from densesiam_d2.solver import build_optimizer
from tests.losses import references
from tests.modeling.meta_arch.tiny import (
    WIDTH,
    assert_close_gradients,
    fpn_cfg,
    freeze_statistics,
    gradients,
    tiny_batch,
    tiny_cfg,
    tiny_model,
    totals_of_twenty_steps,
)


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def test_region_heads_stay_in_float32_under_autocast():
    """Pooled sums can pass the largest half-precision number, so their heads must not see half precision either."""
    model = tiny_model(tiny_cfg())
    channels = model.region.projector[0].in_channels
    torch.manual_seed(0)
    f1, f2 = torch.randn(2, channels, 4, 4), torch.randn(2, channels, 4, 4)
    z1, z2 = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    valid = torch.ones(2, dtype=torch.bool)
    expected = model.region(f1, f2, z1, z2, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model.region(f1, f2, z1, z2, valid)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def latest(model, batch):
    with EventStorage(0) as storage:
        model(batch)
        return {key: value for key, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("depth", [18, 34, 50, 101, "fpn"])
def test_one_step_reaches_every_parameter(depth):
    model = tiny_model(fpn_cfg() if depth == "fpn" else tiny_cfg(depth))
    losses = step(model, tiny_batch())
    assert set(losses) == {"loss_pixel", "loss_region"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert -1 <= losses["loss_pixel"].item() <= 1
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DDP waits for these for ever"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_dict_and_list_give_equal_losses():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    from_dict = step(model, batch)
    from_list = step(model, [{key: values[i] for key, values in batch.items()} for i in range(2)])
    assert {k: v.item() for k, v in from_dict.items()} == {k: v.item() for k, v in from_list.items()}


def encoded(model, view):
    """Backbone features; in the model's memory order, for the last digits of deep networks depend on it."""
    view = (view - model.pixel_mean) / model.pixel_std
    return model.backbone(view.contiguous(memory_format=torch.channels_last))["res5"]


def explicit_parts(model, batch):
    """The forward pass once more, module by module: (f, z, p) of each view, sampled at the common points."""
    boxes1, boxes2 = batch["view_boxes"].unbind(dim=1)
    *grids, valid = overlap_grids(boxes1, boxes2, model.grid_size)
    parts = []
    for view, grid in zip(batch["views"].unbind(dim=1), grids, strict=True):
        f = encoded(model, view)
        z = model.dense.projector(f)
        p = model.dense.predictor(z)
        parts.append([F.grid_sample(t, grid, align_corners=False, padding_mode="border") for t in (f, z, p)])
    return *parts, valid


def test_pixel_loss_and_its_gradient_equal_the_slow_reference():
    """The reference stops the gradient at z, so the encoder hears of each term through p alone."""
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    loss = step(model, batch)["loss_pixel"]
    (_, z1, p1), (_, z2, p2), _ = explicit_parts(model, batch)
    expected = references.symmetric(references.negative_cosine, p1, z2, p2, z1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close_gradients(gradients(model, loss), gradients(model, expected))
    # Without stop-gradient the encoder would hear something else: the comparison above can tell.
    leaky = -(F.cosine_similarity(p1, z2, dim=1).mean() + F.cosine_similarity(p2, z1, dim=1).mean()) / 2
    name = "backbone.res5.1.conv2.weight"
    assert not torch.allclose(gradients(model, leaky)[name], gradients(model, expected)[name], rtol=0.1)


def test_first_term_reaches_the_encoder_through_view_1_only():
    model, batch = tiny_model(tiny_cfg(GRID_POSITION="output")), tiny_batch()
    freeze_statistics(model)
    x1, x2, boxes1, boxes2 = model.preprocess_views(batch)
    x1.requires_grad_()
    x2.requires_grad_()
    view1, view2, _ = encoded_views(model.encode(x1), model.encode(x2), boxes1, boxes2, model.grid_size)
    _, p1 = project_points(model.dense, view1, sample_features=False)
    z2, _ = project_points(model.dense, view2, sample_features=False)
    grad1, grad2 = torch.autograd.grad(negative_cosine(p1, z2), (x1, x2), allow_unused=True)
    assert grad1.abs().sum() > 0
    assert grad2 is None


@pytest.mark.parametrize("grid_size", [2, 3])  # fewer points than the 8 regions: projected first; more: pooled first
@pytest.mark.parametrize("loss_name", ["infonce", "cosine"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_region_loss_and_its_gradient_equal_the_slow_reference(loss_name, stop_gradient, grid_size):
    options = {"REGION__LOSS": loss_name, "REGION__STOP_GRADIENT": stop_gradient, "REGION__LOSS_WEIGHT": 0.3}
    model = tiny_model(tiny_cfg(GRID_SIZE=grid_size, **options))
    batch = tiny_batch()
    loss = step(model, batch)["loss_region"]
    predictions, targets = [], []
    for f, z, _ in explicit_parts(model, batch)[:2]:
        rows = references.pool_regions(f, z)  # (N, M, C)
        target = model.region.projector(rows.flatten(0, 1)[:, :, None, None])
        predictions.append(model.region.predictor(target).reshape(2, 8, 8))
        targets.append(target.reshape(2, 8, 8))
    if stop_gradient:
        targets = [t.detach() for t in targets]
    one_way = {"infonce": references.region_infonce, "cosine": references.region_cosine}[loss_name]
    expected = 0.3 * 0.5 * (one_way(predictions[0], targets[1]) + one_way(predictions[1], targets[0]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, loss), gradients(model, expected))


def image_cfg(weight):
    return tiny_cfg(IMAGE__LOSS_WEIGHT=weight, IMAGE__PROJ_DIMS=[16, 16, 8], IMAGE__PRED_DIM=8)


def test_image_loss_and_its_gradient_equal_the_slow_reference():
    """Also for images whose views do not overlap."""
    model, batch = tiny_model(image_cfg(0.5)), tiny_batch(4)
    batch["view_boxes"][1, 1] += 1000
    loss = step(model, batch)["loss_image"]
    z = []
    for view in batch["views"].unbind(dim=1):
        z.append(model.image.projector(F.adaptive_avg_pool2d(encoded(model, view), 1)))
    p = [model.image.predictor(t) for t in z]
    expected = 0.5 * references.symmetric(references.negative_cosine, p[0], z[1], p[1], z[0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, loss), gradients(model, expected))


def test_image_loss_of_weight_0_has_no_heads_and_changes_nothing_else():
    without, with_image = tiny_model(image_cfg(0.0)), tiny_model(image_cfg(1.0))
    state, other = without.state_dict(), with_image.state_dict()
    own = [name for name in other if name.startswith("image.")]
    assert own and other.keys() - state.keys() == set(own)
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    losses, others = step(without, tiny_batch()), step(with_image, tiny_batch())
    assert losses.keys() == {"loss_pixel", "loss_region"} and others.keys() - losses.keys() == {"loss_image"}
    assert all(torch.equal(loss, others[name]) for name, loss in losses.items())


def test_image_heads_have_the_released_widths_and_a_fixed_rate():
    """Two layers of 512 with norm and ReLU, a third without ReLU whose norm does not learn; 512 - 512 - 512."""
    cfg = tiny_cfg(IMAGE__LOSS_WEIGHT=1.0)
    model = tiny_model(cfg)
    shapes = [tuple(p.shape[:2]) for name, p in model.image.named_parameters() if p.dim() == 4]
    assert shapes == [(512, WIDTH), (512, 512), (512, 512), (512, 512), (512, 512)]
    learned = [name for name, p in model.image.named_parameters() if p.requires_grad and p.dim() == 1]
    assert learned == [
        *[f"projector.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")],
        *["predictor.1.weight", "predictor.1.bias", "predictor.3.bias"],
    ]
    fixed = {id(p) for g in build_optimizer(cfg, model).param_groups if g.get("fix_lr") for p in g["params"]}
    assert {id(p) for p in model.image.predictor.parameters()} <= fixed


def test_the_exported_backbone_does_not_depend_on_the_image_loss():
    exported = [backbone_state(tiny_model(image_cfg(weight))) for weight in (0.0, 1.0)]
    assert exported[0].keys() == exported[1].keys()
    assert not [name for name in exported[1] if "image" in name]


@pytest.mark.parametrize("position", ["output", "feature"])
@pytest.mark.parametrize("region_loss", ["infonce", "cosine"])
def test_images_without_overlap_contribute_nothing(position, region_loss):
    """With fixed statistics images are independent: losses and gradients are those of the other image alone."""
    model = tiny_model(tiny_cfg(GRID_POSITION=position, REGION__LOSS=region_loss))
    freeze_statistics(model)
    batch = tiny_batch()
    batch["view_boxes"][1, 1] = torch.tensor([200.0, 200, 264, 264])
    alone = {key: values[:1] for key, values in batch.items()}
    actual, expected = step(model, batch), step(model, alone)
    for name in expected:
        assert actual[name].item() == pytest.approx(expected[name].item(), rel=1e-3, abs=1e-6)
    assert_close_gradients(gradients(model, sum(actual.values())), gradients(model, sum(expected.values())))


def test_no_overlap_at_all_gives_zero_and_zero_gradient():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    batch["view_boxes"][:, 1] += 1000
    losses = step(model, batch)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert all((grad == 0).all() for grad in gradients(model, sum(losses.values())).values())


def test_region_loss_starts_with_its_share_of_training():
    model, batch = tiny_model(tiny_cfg(REGION__START=0.8)), tiny_batch()
    with pytest.raises(RuntimeError, match="ProgressHook"):
        step(model, batch)
    model.progress = 0.5
    early = step(model, batch)["loss_region"]
    assert early.item() == 0
    early.backward()  # still in the graph: DDP wants every parameter
    assert all(p.grad is not None for p in model.region.parameters() if p.requires_grad)
    model.progress = 0.9
    late = step(model, batch)["loss_region"].item()
    assert late == pytest.approx(step(_without_start(model), batch)["loss_region"].item())
    assert late > 0


def _without_start(model):
    model.region_start = 0.0
    return model


@pytest.mark.parametrize("key", ["PIXEL", "REGION"])
def test_weights_scale_their_own_loss(key):
    losses = []
    for weight in (1.0, 2.5):
        model = tiny_model(tiny_cfg(**{f"{key}__LOSS_WEIGHT": weight}))
        losses.append({name: loss.item() for name, loss in step(model, tiny_batch()).items()})
    for name in losses[0]:
        factor = 2.5 if name == f"loss_{key.lower()}" else 1
        assert losses[1][name] == pytest.approx(factor * losses[0][name], rel=1e-5)


def test_sampling_position_does_not_matter_to_linear_heads():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    model.dense.projector, model.dense.predictor = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(8, 8, 1)
    assert not model.sample_features
    at_output = step(model, batch)
    model.sample_features = True
    at_feature = step(model, batch)
    for name in at_output:
        assert at_output[name].item() == pytest.approx(at_feature[name].item(), abs=1e-5)


def test_sampling_position_matters_to_the_real_heads():
    losses = [step(tiny_model(tiny_cfg(GRID_POSITION=p)), tiny_batch()) for p in ("output", "feature")]
    assert losses[0]["loss_pixel"].item() != pytest.approx(losses[1]["loss_pixel"].item(), abs=1e-4)


def test_metrics_of_a_step_by_hand():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    # View 2 of image 1 spans x 32..96, y 0..64, of which view 1 (0..64) shows the left half; image 2 has no overlap.
    batch["view_boxes"] = torch.tensor([[[0.0, 0, 64, 64], [32, 0, 96, 64]], [[0, 0, 64, 64], [64, 0, 128, 64]]])
    # All projections equal (0, 0, 1, 0, ..): no spread, and 1 of D = 8 regions wins everywhere.
    model.dense.projector = nn.Conv2d(WIDTH, 8, 1)
    nn.init.zeros_(model.dense.projector.weight)
    model.dense.projector.bias.data = torch.eye(8)[2]
    assert latest(model, batch) == pytest.approx(
        {
            "ssl/z_std": 0,
            "ssl/z_std_ideal": 8**-0.5,
            "ssl/between": 0,
            "ssl/within": 0,
            "ssl/effective_rank": 1,
            "ssl/mean_norm": 1,
            "ssl/overlap": 0.25,
            "ssl/no_overlap": 0.5,
            "ssl/winners": 1,
        },
        abs=1e-6,
    )


def test_metrics_stay_silent_between_periods():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    with EventStorage(7) as storage:
        model(batch)
        assert not storage.latest()


def test_constant_images_collapse():
    """Views of 32 px have a single res5 cell, so nothing but the image itself can tell positions apart."""
    model, batch = tiny_model(tiny_cfg()), tiny_batch(size=32)
    freeze_statistics(model)
    spread = latest(model, batch)["ssl/z_std"]
    batch["views"][:] = 90
    assert latest(model, batch)["ssl/z_std"] == pytest.approx(0, abs=1e-6)
    assert spread > 1e-4
    # Every point says the same: p against z is one fixed cosine, and the regions' order is all that is left.
    assert -1 <= step(model, batch)["loss_pixel"].item() <= 1


def test_evaluation_returns_features_without_a_segmentation_head():
    model = tiny_model(tiny_cfg()).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert set(output) == {"features"}
    assert output["features"].shape == (WIDTH, 2, 2)


def test_twenty_steps_lower_the_total_loss():
    totals = totals_of_twenty_steps(tiny_model(tiny_cfg()), tiny_batch(), lr=0.02)
    assert totals[-1] < totals[0] - 0.1
