"""DenseSiam with a segmentation head: the released losses, and inference as the stock segmentor's."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from densesiam_d2.geometry import overlap_grids, sample
from densesiam_d2.modeling import consistency
from densesiam_d2.modeling.meta_arch import densesiam_segmentor
from tests.evaluation.processes import in_two_processes
from tests.losses import references
from tests.modeling.meta_arch.tiny import (
    assert_close_gradients,
    freeze_statistics,
    gradients,
    tiny_batch,
    tiny_model,
    tiny_sem_seg_cfg,
    totals_of_twenty_steps,
)


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def explicit_logits(model, batch):
    """Return z and p of both views for the main and for the auxiliary classifier, and both views' sampled features."""
    head, features = model.sem_seg_head, []
    boxes1, boxes2 = batch["view_boxes"].unbind(dim=1)
    grids = overlap_grids(boxes1, boxes2, model.grid_size)[:2]
    for view, grid in zip(batch["views"].unbind(dim=1), grids, strict=True):
        view = ((view - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        f = head.decoder(model.backbone(view))
        features.append(F.grid_sample(f, grid, align_corners=False, padding_mode="border"))
    logits = []
    for classifier in (head.classifier, head.aux_classifier):
        z1, z2 = (classifier.projector(f) for f in features)
        logits.append({"z1": z1, "z2": z2, "p1": classifier.predictor(z1), "p2": classifier.predictor(z2)})
    return logits, features


def explicit_losses(model, batch, region_weight):
    """The released losses of the model's own tensors, computed by the slow references."""
    logits, features = explicit_logits(model, batch)
    projector, predictor = (
        lambda rows, module=module: module(rows[:, :, None, None]).flatten(1)
        for module in (model.region.projector, model.region.predictor)
    )
    return references.released_segmentation_losses(*logits, *features, projector, predictor, region_weight)


def test_losses_and_gradient_equal_the_released_ones():
    model, batch = tiny_model(tiny_sem_seg_cfg()), tiny_batch()
    losses = step(model, batch)
    expected = explicit_losses(model, batch, region_weight=0.1)
    assert set(losses) == {"loss_pixel", "loss_pixel_aux", "loss_sem_seg", "loss_region"} == set(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    assert_close_gradients(gradients(model, sum(losses.values())), gradients(model, sum(expected.values())))


def test_balanced_targets_equal_the_slow_reference():
    """Targets and pseudo labels are those of Sinkhorn and Knopp, at the temperature of the targets."""
    cfg = tiny_sem_seg_cfg(PIXEL__TARGET_TEMPERATURE=0.5)
    cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SINKHORN, cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.REBALANCE = True, False
    model, batch = tiny_model(cfg), tiny_batch()
    losses = step(model, batch)
    main, aux = explicit_logits(model, batch)[0]
    expected = []
    for h, weight in zip((main, aux), model.sem_seg_head.similarity_weights(), strict=True):
        h["t1"], h["t2"] = (references.balanced(h[z] / 0.5).log() for z in ("z1", "z2"))
        similarity = references.symmetric(references.soft_cross_entropy, h["p1"], h["t2"], h["p2"], h["t1"])
        expected.append(weight * similarity)
    terms, others = [], 0
    for z, t in ((main["z1"], main["t1"]), (main["z2"], main["t2"])):
        labels = t.argmax(dim=1)
        others += (labels != z.argmax(dim=1)).sum().item()
        terms += [-z.log_softmax(dim=1)[n, labels[n, i, j], i, j] for n, i, j in references.pixels(z)]
    assert others > 0  # else the pseudo labels could be the logits' own
    expected.append(sum(terms) / len(terms))
    actual = [losses[name] for name in ("loss_pixel", "loss_pixel_aux", "loss_sem_seg")]
    assert [loss.item() for loss in actual] == pytest.approx([loss.item() for loss in expected], rel=1e-4)
    assert_close_gradients(gradients(model, sum(actual)), gradients(model, sum(expected)))


def subset_cfg():
    """A backbone of which the segmentation head takes two features and nobody the other two."""
    cfg = tiny_sem_seg_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3"]
    return cfg


def test_features_that_nobody_takes_get_a_gradient_too():
    model = tiny_model(subset_cfg())
    sum(step(model, tiny_batch()).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all((p.grad == 0).all() for p in model.backbone.res5.parameters())
    assert any((p.grad != 0).any() for p in model.backbone.res3.parameters())


def train_two_steps(rank):
    model = nn.parallel.DistributedDataParallel(tiny_model(subset_cfg()))
    losses = []
    for iteration in range(2):  # the second one waits for the gradients of the first
        losses.append(sum(step(model, tiny_batch(seed=rank), iteration + 1).values()))
        model.zero_grad()
        losses[-1].backward()
    return [loss.item() for loss in losses], model.module.backbone.res3[0].conv1.weight.grad


def test_two_processes_with_features_that_nobody_takes():
    (_, grad0), (_, grad1) = in_two_processes(train_two_steps)
    assert torch.equal(grad0, grad1) and (grad0 != 0).any()


def test_features_are_sampled_once_and_the_losses_are_those_of_sampling_for_each_head(monkeypatch):
    """The reference samples anew before each head, as the formulas are written."""

    def anew(heads, view, *, sample_features):
        z = heads.projector(F.grid_sample(view.f, view.grid, align_corners=False, padding_mode="border"))
        return z, heads.predictor(z)

    model, batch, calls = tiny_model(tiny_sem_seg_cfg()), tiny_batch(), []
    monkeypatch.setattr(consistency, "sample", lambda f, grid: calls.append(f.shape) or sample(f, grid))
    losses = step(model, batch)
    assert len(calls) == 2  # one for each view
    monkeypatch.setattr(densesiam_segmentor, "project_points", anew)
    expected = step(model, batch)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=1e-6
    )
    assert_close_gradients(gradients(model, sum(losses.values())), gradients(model, sum(expected.values())))


def test_whole_cells_change_what_view_2_is_sampled_at(monkeypatch):
    """View 2 has 16 cells; view 1 shows its pixels 21 to 61 of 80: cells 4.2 to 12.2, or whole ones, 4 to 12."""
    shifted = torch.tensor([[21.0, 21, 61, 61], [0, 0, 80, 80]]).repeat(2, 1, 1)
    points = []
    monkeypatch.setattr(consistency, "sample", lambda f, grid: points.append(grid) or sample(f, grid))
    for whole_cells in (False, True):
        model, batch = tiny_model(tiny_sem_seg_cfg(WHOLE_CELLS=whole_cells)), tiny_batch()
        step(model, {**batch, "view_boxes": shifted})
    # Four points at the centres of two cells each, in cells of view 2 (16 of them from -1 to 1).
    exact, whole = ((points[i][0, 0, :, 0] + 1) * 8 for i in (1, 3))
    assert torch.allclose(exact, torch.tensor([5.2, 7.2, 9.2, 11.2]))
    assert torch.allclose(whole, torch.tensor([5.0, 7, 9, 11]))
    assert torch.equal(points[0], points[2])  # view 1 stays


def test_without_auxiliary_classifier_the_main_one_has_all_the_weight():
    model, batch = tiny_model(tiny_sem_seg_cfg(aux=0)), tiny_batch()
    losses = step(model, batch)
    assert set(losses) == {"loss_pixel", "loss_sem_seg", "loss_region"}
    classifier = model.sem_seg_head.classifier
    boxes1, boxes2 = batch["view_boxes"].unbind(dim=1)
    z = []
    for view, grid in zip(batch["views"].unbind(dim=1), overlap_grids(boxes1, boxes2, 4), strict=False):
        view = ((view - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        f = model.sem_seg_head.decoder(model.backbone(view))
        z.append(classifier.projector(F.grid_sample(f, grid, align_corners=False, padding_mode="border")))
    p1, p2 = (classifier.predictor(t) for t in z)
    expected = references.symmetric(references.soft_cross_entropy, p1, z[1], p2, z[0])
    assert losses["loss_pixel"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_weights_come_from_the_config():
    cfg = tiny_sem_seg_cfg(REGION__LOSS_WEIGHT=0.3, PIXEL__LOSS_WEIGHT=2.0)
    cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = 5.0
    cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.SIMILARITY_WEIGHT = 3.0
    batch = tiny_batch()
    base, scaled = step(tiny_model(tiny_sem_seg_cfg()), batch), step(tiny_model(cfg), batch)
    factors = {"loss_region": 3, "loss_sem_seg": 5, "loss_pixel": 6, "loss_pixel_aux": 6}
    for name, factor in factors.items():
        assert scaled[name].item() == pytest.approx(factor * base[name].item(), rel=1e-5), name


def test_images_without_overlap_contribute_nothing():
    """Also not to the frequencies of the pseudo labels: with fixed statistics, the other image's alone."""
    model, batch = tiny_model(tiny_sem_seg_cfg()), tiny_batch()
    freeze_statistics(model)
    batch["view_boxes"][1, 1] = torch.tensor([200.0, 200, 264, 264])
    actual = step(model, batch)
    expected = step(model, {key: values[:1] for key, values in batch.items()})
    for name in expected:
        assert actual[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
    assert_close_gradients(gradients(model, sum(actual.values())), gradients(model, sum(expected.values())))


def test_region_loss_waits_for_its_start():
    model, batch = tiny_model(tiny_sem_seg_cfg(REGION__START=0.8)), tiny_batch()
    model.progress = 0.79
    assert step(model, batch)["loss_region"].item() == 0
    model.progress = 0.8
    assert step(model, batch)["loss_region"].item() > 0


def test_inference_equals_the_stock_segmentor_with_the_same_weights():
    cfg = tiny_sem_seg_cfg()
    model = tiny_model(cfg)
    for seed in range(3):  # running statistics that are not their initial values
        step(model, tiny_batch(seed=seed))
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    stock = build_model(cfg).eval()
    missing, unexpected = stock.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith("region.") for key in unexpected)
    inputs = [
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 128, "width": 100},
        {"image": torch.randint(0, 256, (3, 80, 64), dtype=torch.uint8)},
    ]
    with torch.no_grad():
        actual = model.eval()(inputs)
        expected = [stock([x])[0] for x in inputs]  # one by one: together they would be padded to a common size
    assert [tuple(output["sem_seg"].shape) for output in actual] == [(4, 128, 100), (4, 80, 64)]
    for output, stock_output in zip(actual, expected, strict=True):
        assert torch.allclose(output["sem_seg"], stock_output["sem_seg"], atol=1e-5)


def test_labels_instead_of_logits():
    cfg = tiny_sem_seg_cfg()
    model = tiny_model(cfg)
    step(model, tiny_batch())
    inputs = [
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 128, "width": 100},
        {"image": torch.randint(0, 256, (3, 75, 64), dtype=torch.uint8)},
    ]
    cfg.TEST.SEM_SEG_OUTPUT = "labels"
    short = build_model(cfg).eval()
    short.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits, labels = model.eval()(inputs), short(inputs)
    for full, output in zip(logits, labels, strict=True):
        assert output["num_classes"] == len(full["sem_seg"])
        assert (output["sem_seg_labels"] == full["sem_seg"].argmax(dim=0)).float().mean() > 0.999


def test_winners_are_the_clusters_that_win():
    model, batch = tiny_model(tiny_sem_seg_cfg()), tiny_batch()
    last = model.sem_seg_head.classifier.projector[-1]
    last.requires_grad_(True)
    last.bias.data[1] += 100  # cluster 1 of 4 wins every point
    with EventStorage(0) as storage:
        model(batch)
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert latest["ssl/winners"] == 1
    # All logits point along cluster 1, but for their unit variance against 100.
    assert latest["ssl/mean_norm"] > 0.99
    assert latest["ssl/between"] < 0.1 and latest["ssl/within"] < 0.1


def test_twenty_steps_lower_the_total_loss():
    totals = totals_of_twenty_steps(tiny_model(tiny_sem_seg_cfg()), tiny_batch(), lr=0.05)
    assert totals[-1] < totals[0] - 0.1
