"""One step: what is dropped, what stays as it was, and when it is enough."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.engine.step import StepTrainer
from densesiam_d2.solver.build import fuse


class Model(nn.Module):
    """A loss of three values, one of which can be spoilt."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        y = self.linear(self.norm(x))
        return {"loss_a": y.square().mean(), "loss_b": y.mean() * 0.1}


def trainer_of(batches, *, ahead=False, **options):
    """``ahead``: as on a GPU, where the host does not look at what the step brought before it queues the next one."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    if ahead:
        fuse(optimizer)
    trainer = StepTrainer(model, batches, optimizer, **options)
    trainer._runs_ahead = ahead
    return trainer


def good(seed=0):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))


def bad(value=float("nan")):
    return torch.full((8, 3), value)


def steps(trainer, number):
    with EventStorage() as storage:
        for trainer.iter in range(number):
            storage.iter = trainer.iter
            trainer.run_step()
    return storage


def state_of(trainer):
    state = {name: value.clone() for name, value in trainer.model.state_dict().items() if value.is_floating_point()}
    momenta = [s["momentum_buffer"].clone() for s in trainer.optimizer.state_dict()["state"].values()]
    return [*state.values(), *momenta]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_step_changes_nothing(value, precision, caplog):
    trainer = trainer_of([good(), bad(value), good(1)], precision=precision)
    steps(trainer, 1)
    before = state_of(trainer)
    storage = steps(trainer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))
    assert "dropped, no. 1 in a row" in caplog.text
    assert storage.latest()["dropped_steps"][0] == 1
    steps(trainer, 1)
    assert all(value.isfinite().all() for value in state_of(trainer))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_device_drops_a_step_by_itself(value, caplog):
    batches = [good(), bad(value), good(1)]
    trainer = trainer_of(batches, ahead=True)
    steps(trainer, 1)
    before = state_of(trainer)
    steps(trainer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))
    assert "dropped" not in caplog.text  # nobody has looked yet
    storage = steps(trainer, 1)
    assert "dropped, no. 1 in a row" in caplog.text
    undisturbed, plain = trainer_of([good(), good(1)], ahead=True), trainer_of([good(), good(1)])
    steps(undisturbed, 2)
    steps(plain, 2)
    assert all(torch.equal(a, b) for a, b in zip(state_of(undisturbed), state_of(trainer), strict=True))
    for a, b in zip(state_of(plain), state_of(trainer), strict=True):
        torch.testing.assert_close(a, b)
    assert "loss_a" not in storage.latest()
    with storage:
        trainer.read_numbers()
    assert storage.latest()["loss_a"][1] == 0


def test_the_device_may_drop_the_first_step():
    trainer, undisturbed = trainer_of([bad(), good()], ahead=True), trainer_of([good()], ahead=True)
    steps(trainer, 2)
    steps(undisturbed, 1)
    assert all(torch.equal(a, b) for a, b in zip(state_of(undisturbed), state_of(trainer), strict=True))


def test_on_a_device_too_many_in_a_row_end_the_run():
    trainer = trainer_of([good(), bad(), bad(), bad(), good()], ahead=True, max_dropped=3)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*The last good step had: loss_a 0\.\d+"):
        steps(trainer, 5)
    assert trainer.iter == 4  # one later than on the CPU


def test_a_wish_to_stop_is_seen_one_step_later():
    trainer = trainer_of([good()] * 3, ahead=True)
    trainer.stop_requested = True
    steps(trainer, 1)
    assert not trainer.stop_agreed
    steps(trainer, 1)
    assert trainer.stop_agreed


def test_resuming_a_checkpoint_of_a_plain_optimizer_stays_fused():
    stored = trainer_of([good()])
    steps(stored, 1)
    trainer = trainer_of([bad(), good()], ahead=True)
    trainer.load_state_dict(stored.state_dict())
    trainer.model.load_state_dict(stored.model.state_dict())
    before = state_of(trainer)
    steps(trainer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))


def test_the_gradient_alone_counts_too(caplog):
    trainer = trainer_of([good(), good()])
    trainer.model.linear.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    steps(trainer, 1)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert "grad_norm nan" in caplog.text


def test_too_many_in_a_row_end_the_run():
    trainer = trainer_of([good(), bad(), bad(), good(), bad(), bad(), bad()], max_dropped=3)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*The last good step had: loss_a 0\.\d+.*BASE_LR"):
        steps(trainer, 7)
    assert trainer.iter == 6  # two bad ones before a good one were forgiven


def test_numbers_are_logged():
    trainer = trainer_of([good()])
    latest = {name: value for name, (value, _) in steps(trainer, 1).latest().items()}
    assert latest["total_loss"] == pytest.approx(latest["loss_a"] + latest["loss_b"])
    gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert latest["grad_norm"] == pytest.approx(gradients.norm().item(), rel=1e-6)
    assert latest["data_time"] >= 0


def test_killed_workers_are_explained():
    def batches():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        yield

    with pytest.raises(RuntimeError, match=r"memory ran out: take fewer DATALOADER\.NUM_WORKERS"):
        steps(trainer_of(batches()), 1)


def test_the_loss_scale_of_another_precision_is_left_out():
    stored = trainer_of([]).state_dict() | {"iteration": 3}
    stored["grad_scaler"] = {"scale": 8.0}
    trainer_of([], precision="bf16").load_state_dict(stored)


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (EOFError(), True),  # the worker was killed while it handed a batch over
        (ConnectionRefusedError(111, "Connection refused"), True),
        (EOFError("Caught EOFError in DataLoader worker process 0."), False),
        (RuntimeError("stack expects each tensor to be equal size"), False),
    ],
)
def test_only_the_death_of_a_worker_is_put_down_to_memory(error, explained):
    def batches():
        yield good()
        raise error

    trainer = trainer_of(batches())
    with pytest.raises(type(error) if not explained else RuntimeError) as caught:
        steps(trainer, 2)
    assert ("DATALOADER.NUM_WORKERS" in str(caught.value)) == explained
