"""Region pooling and InfoNCE: numbers by hand, slow references, gradients, left-out images."""

import math
from itertools import pairwise

import pytest
import torch

from densesiam_d2.losses import pool_regions, region_infonce
from tests.losses import references


def _regions(*vectors):
    """One image with len(vectors) regions: (1, D, M, 1)."""
    return torch.tensor(vectors).T[None, :, :, None]


def _rows(maps):
    """(N, D, M, 1) to the references' (N, M, D)."""
    return maps.squeeze(-1).transpose(1, 2)


def test_pool_regions_by_hand():
    # Two points with features 2 and 10. softmax(ln 3, 0) = (3/4, 1/4) at the first, (1/2, 1/2) at the second.
    # Region 1: 3/4 * 2 + 1/2 * 10 = 6.5. Region 2: 1/4 * 2 + 1/2 * 10 = 5.5. Sums: a mean would halve them.
    features = torch.tensor([[[[2.0, 10.0]]]])
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])
    pooled = pool_regions(features, logits)
    assert pooled.shape == (1, 1, 2, 1)
    assert pooled.flatten().tolist() == pytest.approx([6.5, 5.5])


def test_pool_regions_equals_the_loops_with_gradients_to_both():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 5, dtype=torch.float64)  # some function of the pooled regions
    expected = references.pool_regions(features, logits)
    pooled = _rows(pool_regions(features, logits))
    assert torch.allclose(pooled.double(), expected, rtol=1e-5, atol=1e-5)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (features, logits))
    grads = torch.autograd.grad((pooled * weight).sum(), (features, logits))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_pool_regions_stays_in_float32_under_autocast():
    """Sums over an 80 x 80 map pass the largest half-precision number, and bfloat16 keeps only 3 digits of them."""
    torch.manual_seed(0)
    features, logits = torch.randn(1, 4, 20, 20) + 3, torch.randn(1, 3, 20, 20)
    expected = pool_regions(features, logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_regions(features, logits)
    assert pooled.dtype == torch.float32
    assert torch.allclose(pooled, expected, rtol=1e-5)


def test_infonce_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    p, z = torch.randn(2, 8, 5, 1), torch.randn(2, 8, 5, 1)
    expected = region_infonce(p, z, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = region_infonce(p, z, 0.1)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_infonce_by_hand():
    # p and z are the unit vectors (after normalisation), so cosines are 1 on the diagonal and 0 off it; at temperature
    # 1/2 the logits are 2 and 0: -ln(e^2 / (e^2 + 1)) = ln(1 + e^-2) for either region.
    p, z = _regions((3.0, 0.0), (0.0, 0.5)), _regions((1.0, 0.0), (0.0, 7.0))
    assert region_infonce(p, z, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    # Positives and negatives exchanged: logits 0 and 2: ln(1 + e^2).
    assert region_infonce(p, z.flip(2), 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_infonce_normalises_over_the_other_views_regions():
    # p's regions both point along x, z's are the unit vectors. Region 1 of p: logits (1, 0) against z: ln(1 + e^-1).
    # Region 2: (1, 0) with the positive second: ln(1 + e). Over p's regions instead, each would give ln 2.
    p, z = _regions((1.0, 0.0), (1.0, 0.0)), _regions((1.0, 0.0), (0.0, 1.0))
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    assert region_infonce(p, z, 1.0).item() == pytest.approx(expected)


def test_infonce_negatives_are_of_the_same_image_only():
    # Twice the image above: regions of the second image would add two more terms to each denominator.
    p = _regions((1.0, 0.0), (0.0, 1.0)).expand(2, -1, -1, -1)
    assert region_infonce(p, p, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_infonce_equals_the_loops_with_gradients_to_both(temperature):
    torch.manual_seed(0)
    p = torch.randn(2, 4, 3, 1, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 4, 3, 1, dtype=torch.float64, requires_grad=True)
    expected = references.region_infonce(_rows(p), _rows(z), temperature)
    value = region_infonce(p, z, temperature)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    expected_grads = torch.autograd.grad(expected, (p, z))
    for grad, expected_grad in zip(torch.autograd.grad(value, (p, z)), expected_grads, strict=True):
        assert expected_grad.abs().max() > 1e-3  # the released loss stops no gradient
        assert torch.allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_infonce_leaves_out_images_even_if_nan():
    torch.manual_seed(0)
    p, z = torch.randn(3, 4, 3, 1), torch.randn(3, 4, 3, 1)
    p[0], z[0] = math.nan, math.nan
    valid = torch.tensor([False, True, True])
    p.requires_grad_()
    z.requires_grad_()
    value = region_infonce(p, z, 0.1, valid)
    value.backward()
    kept_p, kept_z = p.detach()[valid].requires_grad_(), z.detach()[valid].requires_grad_()
    expected = region_infonce(kept_p, kept_z, 0.1)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for tensor, kept in ((p, kept_p), (z, kept_z)):
        assert torch.allclose(tensor.grad[valid], kept.grad, atol=1e-6)
        assert (tensor.grad[0] == 0).all()


def test_infonce_of_no_image_is_zero():
    p = torch.randn(2, 4, 3, 1, requires_grad=True)
    value = region_infonce(p, torch.randn(2, 4, 3, 1), 0.1, torch.tensor([False, False]))
    value.backward()
    assert value.item() == 0
    assert (p.grad == 0).all()


def test_infonce_of_regions_that_look_alike_is_log_m():
    constant = torch.full((2, 4, 7, 1), 0.3)
    assert region_infonce(constant, constant, 0.1).item() == pytest.approx(math.log(7))


def test_twenty_steps_lower_infonce():
    torch.manual_seed(0)
    p = torch.randn(2, 4, 3, 1, requires_grad=True)
    z = torch.randn(2, 4, 3, 1, requires_grad=True)
    optimizer = torch.optim.SGD([p, z], lr=0.05)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = region_infonce(p, z, 0.1)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(later < earlier for earlier, later in pairwise(values))
