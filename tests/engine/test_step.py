"""One step: what is dropped, what stays as it was, and when it is enough."""

import pytest
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.engine.step import StepTrainer


class Model(nn.Module):
    """A loss of three values, one of which can be spoilt."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        y = self.linear(self.norm(x))
        return {"loss_a": y.square().mean(), "loss_b": y.mean() * 0.1}


def trainer_of(batches, optimizer=torch.optim.SGD, fused=False, **options):
    torch.manual_seed(0)
    model = Model()
    options_of = {torch.optim.SGD: {"momentum": 0.9}}.get(optimizer, {})
    optimizer = optimizer(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused, **options_of)
    return StepTrainer(model, batches, optimizer, **options)


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
    """Return all tensors of the model, integers included, and all of the optimizer."""
    tensors = list(trainer.model.state_dict().values())
    for state in trainer.optimizer.state_dict()["state"].values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return [value.clone() for value in tensors]


def assert_same_state(a, b):
    assert len(state_of(a)) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(state_of(a), b, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_step_changes_nothing(value, precision, caplog):
    trainer = trainer_of([good(), bad(value), good(1)], precision=precision)
    steps(trainer, 1)
    before = state_of(trainer)
    storage = steps(trainer, 1)
    assert_same_state(trainer, before)
    assert "dropped, no. 1 in a row" in caplog.text
    assert storage.latest()["dropped_steps"][0] == 1
    steps(trainer, 1)
    assert all(value.isfinite().all() for value in state_of(trainer))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_runs_in_its_precision(precision, dtype):
    trainer, seen = trainer_of([good()], precision=precision), []
    trainer.model.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    steps(trainer, 1)
    assert seen == [dtype] and all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_dropped_steps_leave_no_trace(optimizer, fused):
    options = {"optimizer": optimizer, "fused": fused}
    trainer = trainer_of([bad(), good(), bad(), good(1)], **options)
    undisturbed = trainer_of([good(), good(1)], **options)
    steps(trainer, 4)
    steps(undisturbed, 2)
    assert_same_state(trainer, state_of(undisturbed))


class Undoing(nn.Module):
    """Counts its forwards in a buffer, and undoes the last one itself."""

    undoes_buffers = True

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def undo(self):
        self.count -= 1


def test_modules_that_undo_their_change_are_asked_to():
    class Counting(Model):
        def __init__(self):
            super().__init__()
            self.undoing = Undoing()

        def forward(self, x):
            self.undoing.count += 1
            return super().forward(x)

    model = Counting()
    trainer = StepTrainer(model, [good(), bad(), good(1)], torch.optim.SGD(model.parameters(), lr=0.1))
    steps(trainer, 3)
    assert model.undoing.count == 2


def test_the_fused_optimizer_stays_so_after_a_plain_checkpoint():
    stored, trainer = trainer_of([good()]), trainer_of([good()], fused=True)
    steps(stored, 1)
    trainer.load_state_dict(stored.state_dict())
    assert trainer.optimizer.param_groups[0]["fused"] is True


def test_rate_decay_and_momentum_are_those_of_this_run():
    stored, trainer = trainer_of([good()]), trainer_of([good()])
    steps(stored, 1)
    trainer.optimizer.param_groups[0].update(lr=0.01, weight_decay=0.0, momentum=0.5)
    trainer.load_state_dict(stored.state_dict())
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.01, 0.0, 0.5)
    momenta = (t.optimizer.state_dict()["state"][0]["momentum_buffer"] for t in (trainer, stored))
    assert torch.equal(*momenta)


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
    assert "data_time" in latest


class Means(Model):
    """Losses that are means over images: its norm has fixed statistics. It logs the number of its images."""

    def __init__(self):
        super().__init__()
        self.norm.running_mean += 0.5

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, batch):
        x = batch["x"] if isinstance(batch, dict) else torch.stack(list(batch))
        get_event_storage().put_scalar("images", len(x))
        return super().forward(x)


def step_of(batch, accumulate):
    """Return the gradients of a step, the number of images of each forward, and what is logged."""
    torch.manual_seed(0)
    model, sizes = Means().train(), []
    model.linear.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    storage = steps(StepTrainer(model, [batch], optimizer, accumulate=accumulate), 1)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, sizes, {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize(
    "batch", [good(), list(good()), {"x": good(), "file_name": list("abcdefgh")}], ids=["tensor", "list", "dict"]
)
def test_parts_of_a_batch_have_its_gradients_and_losses(batch):
    gradients, sizes, logged = step_of(batch, 4)
    expected, whole, logged_of_whole = step_of(batch, 1)
    assert sizes == [2, 2, 2, 2] and whole == [8]
    assert all(torch.allclose(gradients[name], expected[name], atol=1e-6) for name in expected)
    for name in ("loss_a", "loss_b", "total_loss", "grad_norm"):
        assert logged[name] == pytest.approx(logged_of_whole[name], rel=1e-5)
    assert logged["images"] == 2  # of the last part


@pytest.mark.parametrize("rows", [slice(0, 2), slice(6, 8)], ids=["first", "last"])
def test_a_bad_part_drops_the_whole_step(rows):
    spoilt = good()
    spoilt[rows] = float("nan")
    trainer = trainer_of([good(), spoilt, good(1)], accumulate=4)
    steps(trainer, 1)
    before = state_of(trainer)
    steps(trainer, 1)
    assert_same_state(trainer, before)
    steps(trainer, 1)
    assert not torch.equal(state_of(trainer)[-1], before[-1])


def test_a_batch_that_cannot_be_split_is_one_line():
    with pytest.raises(ValueError, match=r"8 images in a process; SOLVER\.ACCUMULATE 3 needs a multiple of 3"):
        steps(trainer_of([good()], accumulate=3), 1)


def test_killed_workers_are_explained():
    def batches():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        yield

    with pytest.raises(RuntimeError, match=r"memory ran out: take fewer DATALOADER\.NUM_WORKERS"):
        steps(trainer_of(batches()), 1)


@pytest.mark.parametrize(("precision", "stored"), [("bf16", {"scale": 8.0}), ("fp16", {})])
def test_the_loss_scale_of_another_precision_is_left_out(precision, stored, caplog):
    caplog.set_level("INFO")
    trainer = trainer_of([], precision=precision)
    before = trainer.grad_scaler.get_scale()
    trainer.load_state_dict(trainer_of([]).state_dict() | {"iteration": 3, "grad_scaler": stored})
    assert trainer.grad_scaler.get_scale() == before != 8
    assert "differ in precision: the loss scale starts anew" in caplog.text


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


def test_the_state_of_another_optimizer_is_left_out(caplog):
    before = trainer_of([good()])
    steps(before, 1)
    after = trainer_of([good(1)], optimizer=torch.optim.AdamW)
    after.load_state_dict(before.state_dict())
    steps(after, 1)
    assert "another SOLVER.OPTIMIZER" in caplog.text
    assert all(state["step"] == 1 for state in after.optimizer.state.values())


@pytest.mark.parametrize("layers", [(nn.Linear(3, 4),), (nn.Linear(3, 2), nn.Linear(2, 2))], ids=["wider", "deeper"])
def test_the_state_of_another_model_is_one_line(layers):
    stored, model = nn.Linear(3, 2), nn.Sequential(*layers)
    for p in stored.parameters():
        p.grad = torch.ones_like(p)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (stored, model)]
    optimizers[0].step()
    state = StepTrainer(stored, [], optimizers[0]).state_dict()
    with pytest.raises(WeightsError, match=r"^--resume: the checkpoint is of a model with other parameters"):
        StepTrainer(model, [], optimizers[1]).load_state_dict(state)


def test_other_groups_of_parameters_are_one_line():
    stored = trainer_of([good()]).state_dict()
    stored["optimizer"]["param_groups"].append(dict(stored["optimizer"]["param_groups"][0], params=[]))
    with pytest.raises(WeightsError, match=r"^--resume: .*parameter groups; keep SOLVER\.BACKBONE_LR_FACTOR"):
        trainer_of([good()]).load_state_dict(stored)
