"""Scores, slots and their contrast: numbers by hand, slow references, gradients, no row at all."""

import math

import pytest
import torch

from densesiam_d2.losses import active_slots, pool_slots, prototype_scores, slot_infonce
from tests.losses import slot_references as references
from tests.losses.references import softmax


def test_scores_by_hand():
    # Pixel (3, 4) with prototypes along x and along -y, of any length: 3/5 and -4/5. Pixel (0, 2): 0 and -1.
    z = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # (1, 2, 1, 2)
    scores = prototype_scores(z, torch.tensor([[7.0, 0.0], [0.0, -0.1]]))
    assert scores.shape == (1, 2, 1, 2)
    assert scores.flatten().tolist() == pytest.approx([0.6, 0, -0.8, -1])


def test_slots_by_hand():
    # Shares at temperature 1/2: pixel 1 softmax(ln 3, 0) = (3/4, 1/4), pixel 2 (1/2, 1/2).
    # Slot 1: (3/4 * 2 + 1/2 * 10) / (5/4) = 5.2. Slot 2: (1/4 * 2 + 1/2 * 10) / (3/4) = 22/3.
    z = torch.tensor([[[[2.0, 10.0]]]])
    scores = torch.tensor([[[[math.log(3) / 2, 0.0]], [[0.0, 0.0]]]])
    slots = pool_slots(z, scores, 0.5)
    assert slots.shape == (1, 2, 1)
    assert slots.flatten().tolist() == pytest.approx([5.2, 22 / 3], rel=1e-4)


def test_a_slot_without_pixels_is_the_mean_of_all():
    # exp(-2 / 0.01) is 0 in float32, so only the constant 1e-6 is left of the second slot's shares: equal weights.
    z, scores = torch.tensor([[[[2.0, 10.0]]]]), torch.tensor([[[[1.0, 1.0]], [[-1.0, -1.0]]]])
    assert pool_slots(z, scores, 0.01).flatten().tolist() == pytest.approx([6, 6])


def test_active_slots_by_hand():
    scores = torch.tensor([[[[0.9, 0.1]], [[0.2, 0.3]], [[0.5, 0.2]]], [[[-1.0, -0.9]], [[-0.5, -0.9]], [[0.0, -0.8]]]])
    assert active_slots(scores).tolist() == [[True, True, False], [False, False, True]]


def test_contrast_by_hand():
    # Two keys along x and y. Row (5, 0): cosines 1 and 0, at temperature 1/2 logits 2 and 0. Its positive is key 0:
    # ln(1 + e^-2); if it were key 1: ln(1 + e^2). The mean is multiplied by 2 * 1/2 = 1.
    keys, p = torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert slot_infonce(p, keys, torch.tensor([0, 1]), 0.5).item() == pytest.approx(expected)
    # At temperature 1/4 logits are 4 and 0, and the factor is 1/2.
    value = slot_infonce(p[:1], keys, torch.tensor([0]), 0.25).item()
    assert value == pytest.approx(math.log(1 + math.exp(-4)) / 2, rel=1e-4)


def test_scores_and_slots_equal_the_loops_with_gradients():
    torch.manual_seed(0)
    z = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, 5, dtype=torch.float64)  # some function of the slots
    scores, expected_scores = prototype_scores(z, prototypes), references.scores(z, prototypes)
    slots, expected = pool_slots(z, scores, 0.3), references.slots(z, expected_scores, 0.3)
    assert torch.allclose(scores.double(), expected_scores, atol=1e-5)
    assert torch.allclose(slots.double(), expected, atol=1e-5)
    assert active_slots(scores).nonzero().tolist() == [
        [n, k] for n, found in enumerate(references.active(expected_scores)) for k in sorted(found)
    ]
    expected_grads = torch.autograd.grad((expected * weight).sum(), (z, prototypes))
    for grad, expected_grad in zip(
        torch.autograd.grad((slots * weight).sum(), (z, prototypes)), expected_grads, strict=True
    ):
        assert expected_grad.abs().max() > 1e-3
        assert torch.allclose(grad, expected_grad, rtol=1e-3, atol=1e-5)


def test_contrast_equals_the_loops_with_gradient_to_the_rows_only():
    torch.manual_seed(0)
    p = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    positives, terms = torch.tensor([4, 0, 4]), []
    for row, positive in zip(p, positives.tolist(), strict=True):
        terms.append(-torch.log(softmax([references.cosine(row, key.detach()) / 0.2 for key in keys])[positive]))
    expected = 0.4 * sum(terms) / 3
    value = slot_infonce(p, keys, positives, 0.2)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert torch.allclose(p.grad, torch.autograd.grad(expected, p)[0], rtol=1e-4, atol=1e-7)
    assert keys.grad is None


def test_contrast_without_a_row_is_zero():
    p = torch.randn(0, 5, requires_grad=True)
    value = slot_infonce(p, torch.randn(6, 5), torch.zeros(0, dtype=torch.int64), 0.2)
    value.backward()
    assert value.item() == 0 and p.grad.shape == (0, 5)


def test_all_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    z, prototypes, p, keys = torch.randn(1, 8, 5, 5), torch.randn(4, 8), torch.randn(3, 8), torch.randn(6, 8)

    def values():
        scores = prototype_scores(z, prototypes)
        return scores, pool_slots(z, scores, 0.07), slot_infonce(p, keys, torch.arange(3), 0.2)

    expected = values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = values()
    for value, exact in zip(actual, expected, strict=True):
        assert value.dtype == torch.float32 and torch.allclose(value, exact, rtol=1e-4, atol=1e-6)
