import itertools
import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, hooks
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.engine import Trainer
from densesiam_d2.engine.hooks import PreciseBNHook
from densesiam_d2.engine.step import ForwardState
from densesiam_d2.engine.writers import SSLMetricPrinter


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("densesiam_d2"), "propagate", True)  # a run before may have changed it
    return caplog


def test_precise_statistics_are_those_of_the_same_batches_at_every_call():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    batches = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))

    class Loader:
        def __iter__(self):
            return itertools.cycle(batches)

    loader = Loader()
    norm, mean = model[1], model[1].running_mean
    PreciseBNHook(2, model, loader, 2).update_stats()
    first = mean.clone()
    torch.testing.assert_close(first, model[0](batches[:2].flatten(0, 1)).mean(dim=0))
    hook = PreciseBNHook(2, model, loader, 2)
    for _ in range(2):
        hook.update_stats()
        assert torch.equal(norm.running_mean, first)

    stock = hooks.PreciseBN(2, model, loader, 2)
    stock.update_stats()
    stock.update_stats()
    assert not torch.equal(norm.running_mean, first)


def test_a_dropped_step_restores_precise_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ForwardState(model)
    PreciseBNHook(2, model, [torch.randn(8, 3)], 1).update_stats()
    expected = model[1].running_mean.clone()
    state.remember()
    model(torch.full((8, 3), float("nan")))
    assert model[1].running_mean.isnan().all()
    state.restore()
    assert torch.equal(model[1].running_mean, expected)


@pytest.mark.parametrize("first", [True, False])
def test_other_processes_keep_no_pictures(first, monkeypatch):
    """The first process writes them to TensorBoard."""
    monkeypatch.setattr(comm, "is_main_process", lambda: first)
    trainer = object.__new__(Trainer)
    trainer._hooks = []
    with EventStorage() as trainer.storage:
        trainer.storage.put_image("proposals", torch.zeros(3, 4, 5))
        trainer.after_step()
        assert len(trainer.storage._vis_data) == int(first)


@pytest.mark.parametrize(
    ("method", "weights", "norm", "says"),
    [
        ("DenseSiam", "", FrozenBatchNorm2d, "FrozenBN has no statistics to keep"),
        ("DenseSiam", "a.pth", FrozenBatchNorm2d, None),
        ("DenseSiam", "", nn.BatchNorm2d, None),
        ("GeneralizedRCNN", "", nn.BatchNorm2d, "trained from random weights"),
    ],
)
def test_what_random_weights_mean(method, weights, norm, says, monkeypatch, log):
    monkeypatch.setattr(DefaultTrainer, "resume_or_load", lambda self, resume: None)
    trainer = object.__new__(Trainer)
    trainer.start_iter, trainer._trainer = 0, SimpleNamespace(model=nn.Sequential(norm(3)))
    trainer.cfg = get_cfg()
    trainer.cfg.MODEL.META_ARCHITECTURE, trainer.cfg.MODEL.WEIGHTS = method, weights
    trainer.resume_or_load(resume=False)
    assert says in log.text if says else not log.text


def test_metrics_are_printed_once(log):
    """detectron2 calls its writers after the last step, and again at the end of training."""
    printer = SSLMetricPrinter()
    with log.at_level(logging.INFO, "densesiam_d2"), EventStorage() as storage:
        for storage.iter, value in ((0, 0.5), (0, None), (1, 0.25)):
            if value is not None:
                storage.put_scalar("ssl/z_std", value)
            printer.write()
    assert [record.getMessage().split() for record in log.records] == [
        ["ssl", "z_std:", "0.5000"],
        ["ssl", "z_std:", "0.2500"],
    ]
