"""Negative cosine and soft cross-entropy: numbers by hand, slow references, stop-gradient, left-out images."""

import math
from itertools import pairwise

import pytest
import torch

from densesiam_d2.losses import negative_cosine, negative_cosine_of_pairs, soft_cross_entropy
from tests.losses import references

LOSSES = [
    pytest.param(negative_cosine, references.negative_cosine, id="negative_cosine"),
    pytest.param(soft_cross_entropy, references.soft_cross_entropy, id="soft_cross_entropy"),
]


def _pixels(*vectors):
    """One image of 1 x len(vectors) pixels: (1, D, 1, len)."""
    return torch.tensor(vectors).T[None, :, None, :]


def test_negative_cosine_by_hand():
    # Pixel 1: (3*4 + 4*3) / (5 * 5) = 0.96. Pixel 2: (1*0 + 0*2) / (1 * 2) = 0. Mean 0.48, negated.
    p = _pixels((3.0, 4.0), (1.0, 0.0))
    z = _pixels((4.0, 3.0), (0.0, 2.0))
    assert negative_cosine(p, z).item() == pytest.approx(-0.48)


def test_negative_cosine_of_pairs_by_hand():
    # Cosines of (3, 4) with (4, 3) and (1, 0): 0.96 and 0.6; of (1, 0): 0.8 and 1.
    p = torch.cat([_pixels((3.0, 4.0), (1.0, 0.0))] * 3)
    z = torch.cat([_pixels((4.0, 3.0), (2.0, 0.0))] * 3)
    pairs = torch.tensor([[[True, True], [False, False]], [[False, False], [False, True]], [[False] * 2] * 2])
    # Image 1: (0.96 + 0.6) / 2 = 0.78. Image 2: 1. Image 3 has no pair: 0. Mean 1.78 / 3, negated.
    p.requires_grad_()
    loss = negative_cosine_of_pairs(p, z.requires_grad_(), pairs)
    assert loss.item() == pytest.approx(-1.78 / 3)
    loss.backward()
    assert z.grad is None and (p.grad[2] == 0).all() and (p.grad[0] != 0).any()


def test_soft_cross_entropy_by_hand():
    # Target softmax(ln 3, 0) = (3/4, 1/4) at both pixels.
    # Pixel 1: softmax(p) = (1/2, 1/2): ln 2. Pixel 2: softmax(p) = (1/4, 3/4): 3/4 ln 4 + 1/4 ln(4/3).
    z = _pixels((math.log(3), 0.0), (math.log(3), 0.0))
    p = _pixels((0.0, 0.0), (0.0, math.log(3)))
    expected = (math.log(2) + 0.75 * math.log(4) + 0.25 * math.log(4 / 3)) / 2
    assert soft_cross_entropy(p, z).item() == pytest.approx(expected)


def test_a_target_temperature_below_1_sharpens_the_target_only():
    """Logits log 2 and 0 give the target 2/3, 1/3; with temperature 0.5 it is 4/5, 1/5."""
    p, z = torch.zeros(1, 2, 1), torch.tensor([[[math.log(2)], [0.0]]])
    p[0, 0] = math.log(3)  # softmax 3/4, 1/4
    expected = -0.8 * math.log(3 / 4) - 0.2 * math.log(1 / 4)
    assert soft_cross_entropy(p, z, target_temperature=0.5).item() == pytest.approx(expected)


def test_arguments_are_not_interchangeable_in_soft_cross_entropy():
    # Target (1/2, 1/2), prediction (3/4, 1/4): 1/2 ln(4/3) + 1/2 ln 4, not ln 2 as the other way round.
    p, z = _pixels((math.log(3), 0.0)), _pixels((0.0, 0.0))
    assert soft_cross_entropy(p, z).item() == pytest.approx(0.5 * math.log(4 / 3) + 0.5 * math.log(4))


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_equals_the_loops_with_gradient(loss, reference):
    torch.manual_seed(0)
    p = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, 2, 4, dtype=torch.float64) * 2
    (expected_grad,) = torch.autograd.grad(expected := reference(p, z), p)
    (grad,) = torch.autograd.grad(value := loss(p, z), p)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(grad, expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_no_gradient_flows_into_the_target(loss, _):
    p = torch.randn(2, 3, 2, 2, requires_grad=True)
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss(p, z).backward()
    assert z.grad is None
    assert p.grad.abs().sum() > 0


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_target_that_is_the_prediction_counts_as_a_constant(loss, _):
    """Not even when both are one tensor: the gradient is that of a detached copy."""
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(x, x * 2), x)
    (expected,) = torch.autograd.grad(loss(x, (x * 2).detach()), x)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_left_out_image_contributes_nothing_even_if_nan(loss, _):
    torch.manual_seed(0)
    p, z = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    p[1], z[1] = math.nan, math.nan
    valid = torch.tensor([True, False, True])
    p.requires_grad_()
    value = loss(p, z, valid)
    value.backward()
    kept = p.detach()[valid].requires_grad_()
    expected = loss(kept, z[valid])
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(p.grad[valid], kept.grad)
    assert (p.grad[1] == 0).all()


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_no_image_left_gives_zero_with_zero_gradient(loss, _):
    p = torch.randn(2, 3, 2, 2, requires_grad=True)
    value = loss(p, torch.randn(2, 3, 2, 2), torch.tensor([False, False]))
    value.backward()
    assert value.item() == 0
    assert (p.grad == 0).all()


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_twenty_steps_lower_the_loss(loss, _):
    torch.manual_seed(0)
    p = torch.randn(2, 3, 2, 2, requires_grad=True)
    z = torch.randn(2, 3, 2, 2)
    optimizer = torch.optim.SGD([p], lr=0.5)
    values = []
    for _step in range(20):
        optimizer.zero_grad()
        value = loss(p, z)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(later < earlier for earlier, later in pairwise(values))


def test_constant_features_give_the_extremes():
    constant = torch.full((2, 5, 3, 3), 0.7)
    assert negative_cosine(constant, constant).item() == pytest.approx(-1)
    assert negative_cosine(constant, -constant).item() == pytest.approx(1)
    assert soft_cross_entropy(constant, constant).item() == pytest.approx(math.log(5))  # uniform over K = 5


def test_similarity_takes_regions_and_half_precision():
    p, z = torch.randn(2, 8, 5, 1), torch.randn(2, 8, 5, 1)
    for loss in (negative_cosine, soft_cross_entropy):
        value = loss(p.half(), z.half())
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(p, z).item(), abs=2e-3)
