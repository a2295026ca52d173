"""The pseudo-label loss: numbers by hand, the slow reference, left-out images."""

import math
from itertools import pairwise

import pytest
import torch

from densesiam_d2.losses import pseudo_label_loss
from tests.losses import references

LN3 = math.log(3)


def _image(*margins):
    """One image of 1 x len(margins) pixels with two clusters: logits (margin, 0)."""
    return torch.stack([torch.tensor(margins), torch.zeros(len(margins))])[None, :, None, :]


def test_rebalanced_by_hand():
    # Labels 0, 0, 0, 1, each with probability 3/4: cross-entropy ln(4/3) everywhere.
    # Weights 3/4, 3/4, 3/4, 1/4, plain mean over 4 pixels: (3 * 3/4 + 1/4) / 4 = 0.625.
    # (Inverse frequency would give (3 * 1/4 + 3/4) / 4 = 0.375, a weighted mean 1.)
    logits = _image(LN3, LN3, LN3, -LN3)
    assert pseudo_label_loss(logits, rebalance=True).item() == pytest.approx(0.625 * math.log(4 / 3))
    assert pseudo_label_loss(logits, rebalance=False).item() == pytest.approx(math.log(4 / 3))
    # Against the other labels: the other probability, 1/4, is where the label is.
    assert pseudo_label_loss(logits, -logits, rebalance=False).item() == pytest.approx(math.log(4))


def test_frequencies_are_of_the_batch_not_of_the_image():
    # Image 1 has labels 0, 0; image 2 has 0, 1: frequencies 3/4, 1/4, so again 0.625. Per image it were
    # (1 + 1 + 1/2 + 1/2) / 4 = 0.75.
    logits = torch.cat([_image(LN3, LN3), _image(LN3, -LN3)])
    assert pseudo_label_loss(logits, rebalance=True).item() == pytest.approx(0.625 * math.log(4 / 3))


def test_left_out_images_do_not_count_in_the_frequencies():
    # Only image 2 counts: labels 0, 1: frequencies 1/2, 1/2.
    logits = torch.cat([_image(LN3, LN3), _image(LN3, -LN3)])
    value = pseudo_label_loss(logits, rebalance=True, valid=torch.tensor([False, True]))
    assert value.item() == pytest.approx(0.5 * math.log(4 / 3))


@pytest.mark.parametrize("rebalance", [True, False])
def test_equals_the_loops_with_gradient(rebalance):
    torch.manual_seed(0)
    logits = (torch.randn(2, 4, 3, 3, dtype=torch.float64) * 2).requires_grad_()
    expected = references.pseudo_label_loss(logits, rebalance)
    value = pseudo_label_loss(logits, rebalance=rebalance)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,), (expected_grad,) = (torch.autograd.grad(x, logits) for x in (value, expected))
    assert torch.allclose(grad, expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rebalance", [True, False])
def test_left_out_image_contributes_nothing_even_if_nan(rebalance):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 2, 2)
    logits[2] = math.nan
    valid = torch.tensor([True, True, False])
    logits.requires_grad_()
    value = pseudo_label_loss(logits, rebalance=rebalance, valid=valid)
    value.backward()
    kept = logits.detach()[valid].requires_grad_()
    expected = pseudo_label_loss(kept, rebalance=rebalance)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(logits.grad[valid], kept.grad)
    assert (logits.grad[2] == 0).all()


@pytest.mark.parametrize("rebalance", [True, False])
def test_no_image_left_gives_zero(rebalance):
    logits = torch.randn(2, 4, 2, 2, requires_grad=True)
    value = pseudo_label_loss(logits, rebalance=rebalance, valid=torch.tensor([False, False]))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_constant_logits_give_log_k():
    # One cluster wins every pixel, so its frequency is 1; its probability is 1/6.
    assert pseudo_label_loss(torch.zeros(2, 6, 3, 3), rebalance=True).item() == pytest.approx(math.log(6))


def test_twenty_steps_lower_the_loss():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = pseudo_label_loss(logits, rebalance=True)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(later < earlier for earlier, later in pairwise(values))
