"""The divergence of the clusters' shares from a prior, by hand and against a loop."""

import math

import pytest
import torch

from densesiam_d2.losses import usage_loss
from tests.evaluation.processes import in_two_processes


def of_shares(*shares):
    """Return logits (1, K, 2) whose softmax has these shares at both points."""
    return torch.tensor(shares).log().view(1, -1, 1).expand(-1, -1, 2).clone()


def test_uniform_prior_by_hand():
    assert usage_loss(torch.zeros(2, 4, 3, 3), 0.0).item() == pytest.approx(0, abs=1e-6)
    expected = 0.5 * math.log(0.5 * 3) + 0.3 * math.log(0.3 * 3) + 0.2 * math.log(0.2 * 3)
    assert usage_loss(of_shares(0.2, 0.5, 0.3), 0.0).item() == pytest.approx(expected, rel=1e-5)


def test_zipf_prior_goes_by_rank_not_by_name():
    """With exponent 1 the prior of three clusters is 6/11, 3/11, 2/11, for the largest first."""
    assert usage_loss(of_shares(3 / 11, 2 / 11, 6 / 11), 1.0).item() == pytest.approx(0, abs=1e-6)
    expected = sum(math.log(11 / 3 / weight) for weight in (6, 3, 2)) / 3
    assert usage_loss(torch.zeros(1, 3, 2), 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_usage_is_the_mean_over_valid_images_and_points():
    logits = torch.cat([of_shares(0.7, 0.3), of_shares(0.3, 0.7), torch.full((1, 2, 2), float("nan"))])
    valid = torch.tensor([True, True, False])
    assert usage_loss(logits, 0.0, valid).item() == pytest.approx(0, abs=1e-6)  # 0.5 each, and NaN does not count
    assert usage_loss(logits, 0.0, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_a_step_against_the_gradient_evens_the_shares_out():
    logits = of_shares(0.7, 0.2, 0.1).requires_grad_()
    usage_loss(logits, 0.0).backward()
    after = (logits - 0.1 * logits.grad).softmax(dim=1)[0, :, 0]
    assert after[0] < 0.7
    assert after[2] > 0.1


def test_shares_are_those_of_all_processes():
    """Each process uses one cluster mostly, both together use both alike."""

    def of_own_image(rank):
        return usage_loss(of_shares(0.9, 0.1) if rank else of_shares(0.1, 0.9), 0.0).item()

    assert in_two_processes(of_own_image) == pytest.approx([0, 0], abs=1e-6)
