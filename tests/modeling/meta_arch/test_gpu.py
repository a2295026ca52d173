"""What only a GPU shows: every method there, in every precision, with synced norms and recomputed stages."""

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage

from densesiam_d2.engine.step import StepTrainer
from densesiam_d2.modeling import METHODS
from densesiam_d2.solver import build_optimizer
from tests.modeling.meta_arch.tiny import method_cfg, tiny_batch, tiny_model

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """Switch off TF32, which rounds the factors of convolutions to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def cfg_of(method, device):
    cfg = method_cfg(method, norm="SyncBN")
    cfg.MODEL.SSL.CHECKPOINT_STAGES, cfg.MODEL.DEVICE = ["res2", "res3"], device
    return cfg


def model_of(method, device):
    model = tiny_model(cfg_of(method, device)).to(memory_format=torch.channels_last)
    model.progress = 0.5
    return model


def test_the_first_losses_are_those_of_the_cpu(method):
    losses = []
    for device in ("cpu", DEVICE):
        with EventStorage(0):
            losses.append({name: loss.item() for name, loss in model_of(method, device)(tiny_batch(4)).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps(method, precision):
    model = model_of(method, DEVICE)
    optimizer = build_optimizer(cfg_of(method, DEVICE), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = StepTrainer(model, itertools.cycle([tiny_batch(4)]), optimizer, precision=precision, max_dropped=20)
    with EventStorage() as storage:
        for trainer.iter in range(20):  # fp16 drops the first ones, while the scale of the loss settles
            storage.iter = trainer.iter
            trainer.run_step()
    after = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.device.type == DEVICE and p.isfinite().all() for p in after.values())
    assert any(not torch.equal(before[name], p) for name, p in after.items())
