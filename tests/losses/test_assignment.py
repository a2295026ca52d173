"""The balanced assignment, by hand and against loops; images that do not count, processes, precision."""

import math

import pytest
import torch

from densesiam_d2.losses import balanced_logits
from tests.evaluation.processes import in_two_processes
from tests.losses import references


def assigned(logits, *args, **kwargs):
    """Return the assignment (points, K) of logits (N, K, h, w)."""
    return balanced_logits(logits, *args, **kwargs).exp().movedim(1, -1).flatten(0, -2)


def test_one_iteration_by_hand():
    """Points with the exponentials (3, 1) and (1, 1): clusters have 4 and 2, so scaled (3/4, 1/2) and (1/4, 1/2)."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]).T.view(1, 2, 1, 2)
    assert torch.allclose(assigned(logits, iterations=1), torch.tensor([[3 / 5, 2 / 5], [1 / 3, 2 / 3]]))


def test_many_iterations_give_equal_shares():
    logits = 3 * torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 4
    assert (logits.argmax(dim=1) == 0).float().mean() > 0.6
    result = assigned(logits, iterations=200)
    assert torch.allclose(result.mean(dim=0), torch.full((5,), 1 / 5), atol=1e-3)
    assert torch.allclose(result.sum(dim=1), torch.ones(32), atol=1e-5)


def test_three_iterations_against_loops():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(balanced_logits(logits).exp(), references.balanced(logits), atol=1e-5)


def test_images_that_do_not_count_change_nothing():
    logits = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = balanced_logits(logits[1:])
    logits[0] = math.nan
    valid = torch.tensor([False, True, True])
    assert torch.allclose(balanced_logits(logits, valid)[1:], expected, atol=1e-6)
    assert balanced_logits(expected, torch.tensor([False, False])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_stay_finite_in_any_precision(dtype):
    logits = torch.tensor([[600.0, -600.0, 0.0], [500.0, 0.0, -500.0]]).view(2, 3, 1, 1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = balanced_logits(logits)
    assert result.dtype == torch.float32 and result.isfinite().all()


def test_shares_are_those_of_all_processes():
    logits = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([True, False, True, True])
    shares = in_two_processes(lambda rank: balanced_logits(logits[rank::2], valid[rank::2]))
    expected = balanced_logits(logits, valid)
    for rank in range(2):
        assert torch.allclose(shares[rank], expected[rank::2], atol=1e-5)
