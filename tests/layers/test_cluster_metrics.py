import math

import pytest
import torch

from densesiam_d2.layers import cluster_metrics


def logits_of(labels, num_clusters, scale=100.0):
    """Return (N, K, P) logits that are sure of labels (N, P)."""
    return scale * torch.nn.functional.one_hot(torch.tensor(labels), num_clusters).transpose(1, 2).float()


def values(*args):
    return {name: value.item() for name, value in cluster_metrics(*args).items()}


def test_by_hand():
    """Points 0 0 0 1 in view 1 and 0 0 1 1 in view 2, of 4 clusters: shares 5/8 and 3/8, three of four agree."""
    z1, z2 = logits_of([[0, 0], [0, 1]], 4), logits_of([[0, 0], [1, 1]], 4)
    entropy = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8)) / math.log(4)
    expected = {"used_clusters": 2, "largest_cluster": 5 / 8, "usage_entropy": entropy, "assignment_entropy": entropy}
    assert values(z1, z2) == pytest.approx({**expected, "pixel_entropy": 0, "view_agreement": 3 / 4}, abs=1e-6)
    assert values(z1.view(2, 4, 2, 1), z2.view(2, 4, 2, 1)) == values(z1, z2)  # a map of points


def test_soft_assignments_by_hand():
    """Two points with softmax (1/4, 3/4) and (3/4, 1/4): the mean is even, each has the entropy of 1/4, 3/4."""
    z = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])
    single = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    result = values(z, z)
    assert result["assignment_entropy"] == pytest.approx(1) and result["pixel_entropy"] == pytest.approx(single)


def test_collapse():
    result = values(logits_of([[2, 2, 2]] * 2, 5), logits_of([[2, 2, 2]] * 2, 5))
    expected = {"used_clusters": 1, "largest_cluster": 1, "view_agreement": 1}
    expected |= dict.fromkeys(("usage_entropy", "assignment_entropy", "pixel_entropy"), 0)
    assert result == pytest.approx(expected, abs=1e-6)


def test_invalid_images_do_not_count():
    z1, z2, valid = logits_of([[0, 1], [2, 2]], 3), logits_of([[0, 1], [0, 0]], 3), torch.tensor([True, False])
    z1[1] = float("nan")
    assert values(z1, z2, valid) == values(z1[:1], z2[:1])
    assert cluster_metrics(z1, z2, torch.tensor([False, False])) == {}


def test_half_precision_logits():
    z = torch.randn(2, 7, 300, generator=torch.Generator().manual_seed(0))
    assert values(z.half(), z.half()) == pytest.approx(values(z, z), abs=0.01)
