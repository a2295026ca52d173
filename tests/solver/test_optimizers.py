"""SGD, AdamW and LARS as the config builds them: against a slow reference, and saved and loaded again."""

import io
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.solver import LARS, build_optimizer

RATES = [0.02, 0.05, 0.1, 0.07, 0.03, 0.01]  # a warm-up and a decay


class Model(nn.Module):
    fixed_lr_modules = ("predictor",)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.predictor = nn.Conv2d(4, 2, 1)
        self.to(memory_format=torch.channels_last)  # as in training

    def forward(self, x):
        return self.predictor(self.norm(self.conv(x)).relu())


def built(name, *opts):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    decay = ["SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.3, "SOLVER.WEIGHT_DECAY_BIAS", 0.2]
    cfg.merge_from_list(["SOLVER.OPTIMIZER", name, "SOLVER.FIX_PREDICTOR_LR", False, *decay, *opts])
    torch.manual_seed(0)
    model = Model()
    return model, build_optimizer(cfg, model)


def step(model, optimizer, number, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(number))
    (model(x) - 1).square().mean().backward()
    optimizer.step()


def sgd(p, g, state, lr, decay, opts):
    g = g + decay * p
    state["m"] = g if state["t"] == 1 else 0.9 * state["m"] + g
    return p - lr * (g + 0.9 * state["m"] if "SOLVER.NESTEROV" in opts else state["m"])


def adamw(p, g, state, lr, decay, opts):
    b1, b2, eps = (0.8, 0.95, 1e-3) if opts else (0.9, 0.999, 1e-8)
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g * g
    m, v = state["m"] / (1 - b1 ** state["t"]), state["v"] / (1 - b2 ** state["t"])
    return p * (1 - lr * decay) - lr * m / (np.sqrt(v) + eps)


def lars(p, g, state, lr, decay, opts):
    trust, eps, inside = (0.05, 0.01, True) if opts else (0.001, 0.0, False)
    if p.ndim > 1:
        g = g + decay * p
        g = g * trust * math.sqrt((p * p).sum()) / (math.sqrt((g * g).sum()) + eps)
    state["m"] = 0.9 * state.get("m", 0) + (lr * g if inside else g)
    return p - (state["m"] if inside else lr * state["m"])


CASES = [
    ("SGD", sgd, []),
    ("SGD", sgd, ["SOLVER.NESTEROV", True]),
    ("AdamW", adamw, []),
    ("AdamW", adamw, ["SOLVER.ADAMW.BETAS", [0.8, 0.95], "SOLVER.ADAMW.EPS", 1e-3]),
    ("LARS", lars, []),
    (
        "LARS",
        lars,
        ["SOLVER.LARS.TRUST_COEFFICIENT", 0.05, "SOLVER.LARS.EPS", 0.01, "SOLVER.LARS.LR_IN_MOMENTUM", True],
    ),
]


@pytest.mark.parametrize(("name", "reference", "opts"), CASES)
def test_steps_equal_a_slow_reference_while_the_rate_changes(name, reference, opts):
    model, optimizer = built(name, *opts)
    decays = {key: 0.3 if key.startswith("norm") else 0.1 for key, _ in model.named_parameters()}
    decays |= {key: 0.2 for key in decays if key.endswith("bias")}
    values = {key: p.detach().double().numpy() for key, p in model.named_parameters()}
    start, states = values, {key: {} for key in values}
    for number, rate in enumerate(RATES, start=1):
        step(model, optimizer, number, rate)
        gradients = {key: p.grad.double().numpy() for key, p in model.named_parameters()}
        for state in states.values():
            state["t"] = number
        values = {
            key: reference(values[key], gradients[key], states[key], rate, decays[key], opts) for key in gradients
        }
    for key, p in model.named_parameters():
        moved = np.abs(values[key] - start[key]).max()
        assert moved > 0, key
        assert np.abs(p.detach().numpy() - values[key]).max() < 1e-5 * moved + 2e-7, key


@pytest.mark.parametrize("changes", [True, False])
def test_the_two_forms_of_lars_differ_only_while_the_rate_changes(changes):
    results = []
    for inside in (True, False):
        model, optimizer = built("LARS", "SOLVER.LARS.LR_IN_MOMENTUM", inside, "SOLVER.LARS.TRUST_COEFFICIENT", 0.1)
        for number, rate in enumerate(RATES):
            step(model, optimizer, number, rate if changes else 0.05)
        results.append(model.conv.weight.detach())
    assert torch.allclose(*results, atol=1e-6) != changes


def test_lars_by_hand():
    """|p| = 5 and |g| = 10: the step of the matrix is 0.1 * 0.02 * 5 / 10 * g; the vector's is 0.1 * g."""
    matrix, vector = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([matrix, vector], lr=0.1, trust_coefficient=0.02, weight_decay=0.0)
    matrix.grad, vector.grad = torch.tensor([[6.0, 8.0]]), torch.tensor([6.0, 8.0])
    optimizer.step()
    assert torch.allclose(matrix, torch.tensor([[3 - 0.006, 4 - 0.008]]))
    assert torch.allclose(vector, torch.tensor([3 - 0.6, 4 - 0.8]))
    assert matrix.grad.tolist() == [[6, 8]]  # left alone


def test_lars_without_a_norm_is_plain_sgd():
    zero, still = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.ones(1, 2))
    optimizer = LARS([zero, still], lr=0.1, trust_coefficient=0.02, eps=0.0)
    zero.grad, still.grad = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    optimizer.step()
    assert torch.allclose(zero, torch.tensor([[-0.1, -0.2]]))
    assert still.tolist() == [[1, 1]]


def test_lars_leaves_one_dimension_without_decay_and_scaling():
    model, optimizer = built("LARS")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    step(model, optimizer, 0, 0.1)
    for key, p in model.named_parameters():
        assert torch.allclose(p, before[key] - 0.1 * p.grad, atol=1e-7) == (p.ndim == 1), key


def test_lars_takes_a_closure():
    p = nn.Parameter(torch.tensor([2.0]))

    def closure():
        p.grad = None
        loss = p.square().sum()
        loss.backward()
        return loss

    optimizer = LARS([p], lr=0.1, momentum=0.0)
    assert optimizer.step(closure).item() == 4
    assert p.item() == pytest.approx(2 - 0.1 * 4)


@pytest.mark.parametrize(("name", "opts"), [(name, opts) for name, _, opts in CASES])
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, opts):
    model, optimizer = built(name, *opts)
    for number in range(3):
        step(model, optimizer, number, RATES[number])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for number in range(3, 6):
        step(model, optimizer, number, RATES[number])

    other, resumed = built(name, *opts)
    for p in other.parameters():
        p.data.add_(1)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for number in range(3, 6):
        step(other, resumed, number, RATES[number])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    mine, its = (o.state_dict() for o in (optimizer, resumed))
    assert mine["param_groups"] == its["param_groups"]
    assert all(
        torch.equal(mine["state"][p][key], its["state"][p][key]) for p in mine["state"] for key in its["state"][p]
    )


@pytest.mark.parametrize("name", ["SGD", "AdamW", "LARS"])
def test_state_of_another_memory_order_is_taken_over(name):
    """A plain detectron2 trainer keeps all in contiguous order; the fused operations do not look at the order."""
    model, optimizer = built(name)
    step(model, optimizer, 0, 0.1)
    saved = optimizer.state_dict()
    contiguous = {p: {key: v.contiguous().clone() for key, v in state.items()} for p, state in saved["state"].items()}
    other, resumed = built(name)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict({**saved, "state": contiguous})
    for number in (1, 2):
        step(model, optimizer, number, 0.1)
        step(other, resumed, number, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "LARS"])
def test_parameters_may_get_their_first_gradient_late(name):
    model, optimizer = built(name)
    before = model.predictor.weight.detach().clone()
    model.conv(torch.ones(1, 3, 6, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(model.predictor.weight, before)
    step(model, optimizer, 1, 0.1)
    assert not torch.equal(model.predictor.weight, before)


def test_sgd_is_fused_and_so_is_adamw(monkeypatch):
    for name, kernel in (("SGD", "_fused_sgd_"), ("AdamW", "_fused_adamw_")):
        calls, run = [], getattr(torch, kernel)
        monkeypatch.setattr(torch, kernel, lambda *args, **kw: (calls.append(args), run(*args, **kw)))  # noqa: B023
        model, optimizer = built(name)
        step(model, optimizer, 0, 0.1)
        assert len(calls) == len(optimizer.param_groups)
