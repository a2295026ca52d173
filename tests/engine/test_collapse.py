"""The collapse monitor: its rules on made-up metrics, and real trainings that collapse or do not."""

import itertools

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from densesiam_d2.engine.collapse import CollapseError, CollapseMonitor
from densesiam_d2.geometry import grid_points, sample, to_grid_sample
from densesiam_d2.modeling.meta_arch import densesiam
from tests.modeling.meta_arch.tiny import tiny_batch, tiny_cfg, tiny_model, tiny_sem_seg_cfg

HEALTHY = {"ssl/between": 0.95, "ssl/effective_rank": 13.4, "ssl/z_std_ideal": 64**-0.5, "ssl/winners": 32}


def warnings_of(checks, monitor, caplog) -> list[int]:
    """Return the numbers, from 1, of the checks that warn; each is a dict of metrics logged, empty for none."""
    warned = []
    with EventStorage() as storage:
        for i, metrics in enumerate(checks, start=1):
            storage.iter = i
            storage.put_scalars(smoothing_hint=False, **metrics)
            caplog.clear()
            monitor.after_step()
            warned += [i for record in caplog.records if record.levelname == "WARNING"]
    return warned


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ({"ssl/between": 0.49}, "between below 0.5"),
        ({"ssl/effective_rank": 1.49}, "effective_rank below 1.5"),
        ({"ssl/winners": 1}, "one region or cluster wins"),
    ],
)
def test_each_number_alone_warns_with_all_values_and_advice(metrics, named, caplog):
    assert warnings_of([{**HEALTHY, **metrics}] * 5, CollapseMonitor(), caplog) == [5]
    (record,) = caplog.records
    assert named in record.message and "5 checks in a row" in record.message and "SOLVER.BASE_LR" in record.message
    assert all(f"{name.removeprefix('ssl/')}: {value:.4f}" in record.message for name, value in metrics.items())
    assert "z_std_ideal: 0.1250" in record.message
    assert "\n" not in record.message


def test_a_healthy_check_starts_the_count_anew(caplog):
    bad = {**HEALTHY, "ssl/between": 0.1}
    assert warnings_of([*[bad] * 4, HEALTHY, *[bad] * 5, HEALTHY], CollapseMonitor(), caplog) == [10]


def test_one_warning_in_ten_checks_while_it_lasts(caplog):
    assert warnings_of([{"ssl/between": 0.1}] * 27, CollapseMonitor(), caplog) == [5, 15, 25]


def test_iterations_without_metrics_are_no_checks(caplog):
    checks = [{"ssl/between": 0.1}, {}, {"total_loss": -1.0}] * 5
    assert warnings_of(checks, CollapseMonitor(), caplog) == [13]  # the fifth that logged


def test_models_without_such_metrics_are_left_alone(caplog):
    assert warnings_of([{"total_loss": 0.0}] * 30, CollapseMonitor(patience=1), caplog) == []
    assert warnings_of([{"ssl/overlap": 0.0}] * 30, CollapseMonitor(patience=1), caplog) == []


def test_few_clusters_need_less_rank_and_two_of_them_are_not_one(caplog):
    """The logits of K clusters have a rank of at most K; here both of two win points."""
    metrics = {"ssl/effective_rank": 1.1, "ssl/z_std_ideal": 2**-0.5, "ssl/winners": 2}
    assert warnings_of([metrics] * 9, CollapseMonitor(), caplog) == []
    metrics["ssl/winners"] = 1
    assert warnings_of([metrics] * 9, CollapseMonitor(), caplog) == [5]


def test_patience_and_repetition_can_be_chosen(caplog):
    assert warnings_of([{"ssl/between": 0.1}] * 6, CollapseMonitor(patience=2, repeat=3), caplog) == [2, 5]


def test_stop_raises_instead(caplog):
    with pytest.raises(CollapseError, match=r"between below 0\.5.*2 checks in a row.*between: 0\.1000"):
        warnings_of([{"ssl/between": 0.1}] * 2, CollapseMonitor(stop=True, patience=2), caplog)
    assert not caplog.records


def smooth_images(num: int, generator: torch.Generator) -> torch.Tensor:
    """Return (num, 3, 64, 64) sums of soft blobs of three sizes."""
    images = 128 + 60 * (torch.rand(num, 3, 1, 1, generator=generator) - 0.5)
    for cells in (3, 6, 12):
        blobs = torch.rand(num, 3, cells, cells, generator=generator) - 0.5
        strength = 255 * torch.rand(num, 1, 1, 1, generator=generator)
        images = images + strength * F.interpolate(blobs, size=(64, 64), mode="bicubic", align_corners=False)
    return images.clamp(0, 255)


def smooth_batch(generator: torch.Generator, num: int = 16) -> dict:
    """Return two views of 32 pixels of each image (crops, flips, strong changes of colour), and 9 patches of each."""
    images, whole = smooth_images(num, generator), torch.tensor([[0.0, 0, 64, 64]]).expand(num, 4)
    views, boxes = [], []
    for _ in range(2):
        side = 64 * (0.5 + 0.5 * torch.rand(num, 1, generator=generator))
        corner = torch.rand(num, 2, generator=generator) * (64 - side)
        box = torch.cat([corner, corner + side], dim=1)
        flip = torch.rand(num, 1, generator=generator) < 0.5
        box = torch.where(flip, box[:, [2, 1, 0, 3]], box)
        view = sample(images, to_grid_sample(grid_points(box, 32), whole))
        grey = torch.rand(num, 1, 1, 1, generator=generator) < 0.3
        view = torch.where(grey, view.mean(dim=1, keepdim=True), view) - 128
        contrast = 0.2 + 1.6 * torch.rand(num, 1, 1, 1, generator=generator)
        tint = 128 * (torch.rand(num, 3, 1, 1, generator=generator) - 0.5)
        views.append((view * contrast + 128 + tint).clamp(0, 255))
        boxes.append(box)
    views = torch.stack(views, dim=1)
    cells = views[..., :30, :30].unfold(3, 10, 10).unfold(4, 10, 10)  # (N, 2, 3, 3, 3, 10, 10)
    patches = cells.permute(0, 1, 3, 4, 2, 5, 6).flatten(2, 3)
    return {"views": views, "patches": patches, "view_boxes": torch.stack(boxes, dim=1)}


def leaky_cosine(p, z, valid=None):
    """The negative cosine without its stop-gradient; all views overlap."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def collapse_is_noticed(without: str, monkeypatch, caplog) -> bool:
    """Train a DenseSiam of one residual stage for 100 iterations, under the watch of the monitor."""
    cfg = tiny_cfg(depth=18, PROJ_DIMS=[64, 64, 64], PRED_DIM=32, GRID_SIZE=4, REGION__STOP_GRADIENT=True)
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.SSL.IN_FEATURE = ["res2"], "res2"
    model = tiny_model(cfg)
    if without == "predictor":
        model.dense.predictor = nn.Identity()
    if without == "stop-gradient":
        monkeypatch.setattr(densesiam, "negative_cosine", leaky_cosine)
    generator = torch.Generator().manual_seed(0)
    batches = [smooth_batch(generator) for _ in range(25)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)
    trainer = SimpleTrainer(model, itertools.cycle(batches), optimizer)
    trainer.register_hooks([CollapseMonitor(patience=2)])
    trainer.train(0, 100)
    return any("have collapsed" in record.message for record in caplog.records)


def test_healthy_training_is_quiet(monkeypatch, caplog):
    assert not collapse_is_noticed("nothing", monkeypatch, caplog)


@pytest.mark.parametrize("without", ["stop-gradient", "predictor"])
def test_collapsing_training_is_noticed(without, monkeypatch, caplog):
    assert collapse_is_noticed(without, monkeypatch, caplog)


HEALTHY_CLUSTERS = {"ssl/largest_cluster": 0.9, "ssl/assignment_entropy": 0.4}


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ({"ssl/largest_cluster": 0.96}, "largest_cluster above 0.95: one cluster has nearly all points"),
        ({"ssl/assignment_entropy": 0.04}, "assignment_entropy below 0.05: nearly all points go to one cluster"),
    ],
)
def test_collapsed_clusters_warn_after_several_checks(metrics, named, caplog):
    bad = {**HEALTHY_CLUSTERS, **metrics}
    assert warnings_of([HEALTHY_CLUSTERS] * 20, CollapseMonitor(), caplog) == []
    assert warnings_of([*[bad] * 4, HEALTHY_CLUSTERS, *[bad] * 4], CollapseMonitor(), caplog) == []
    assert warnings_of([bad] * 5, CollapseMonitor(), caplog) == [5]
    assert named in caplog.records[0].message


class Favour(nn.Module):
    """Adds a large number to the logits of cluster 1."""

    def forward(self, z):
        return z + 1e3 * F.one_hot(torch.tensor(1), z.shape[1]).view(1, -1, 1, 1)


def test_a_collapsed_segmentor_is_noticed(caplog):
    """All points go to one cluster; the model's own forward logs it."""
    model = tiny_model(tiny_sem_seg_cfg())
    model.sem_seg_head.classifier.projector.append(Favour())
    monitor = CollapseMonitor(patience=2)
    with EventStorage() as storage:
        for storage.iter in (19, 20, 39):
            model(tiny_batch())
            monitor.after_step()
        assert storage.latest()["ssl/used_clusters"] == (1, 39)
        assert storage.latest()["ssl/view_agreement"] == (1, 39)
        assert [i for _, i in storage.history("ssl/largest_cluster").values()] == [19, 39]
    assert "largest_cluster above 0.95" in caplog.text and "2 checks in a row" in caplog.text
