"""The contrastive loss: against a loop, and where its value is known."""

import math

import pytest
import torch
from torch.nn import functional as F

from densesiam_d2.losses import info_nce


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_info_nce_equals_the_loop():
    q, k, negatives = unit(5, 4, seed=0).requires_grad_(), unit(5, 4, seed=1), unit(7, 4, seed=2)
    losses = info_nce(q, k, negatives, temperature=0.2)
    expected = []
    for i in range(5):
        candidates = [k[i], *negatives]
        scores = [torch.exp(sum(a * b for a, b in zip(q[i], c, strict=True)) / 0.2) for c in candidates]
        expected.append(-torch.log(scores[0] / sum(scores)))
    assert torch.allclose(losses.double(), torch.stack(expected), rtol=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), q)
    (reference,) = torch.autograd.grad(sum(expected), q)
    assert torch.allclose(gradient, reference, rtol=1e-4, atol=1e-5)


def test_info_nce_where_the_value_is_known():
    q = torch.eye(4)[:2]
    equal = info_nce(q, q, q[:1].expand(7, 4), 0.2)
    assert equal[0].item() == pytest.approx(math.log(8))  # all eight candidates are the query itself
    # The positive has cosine 1, seven negatives have 0: -log(e^5 / (e^5 + 7)).
    assert equal[1].item() == pytest.approx(math.log(1 + 7 * math.exp(-5)), rel=1e-4)
