"""The numbers that show a collapse: by hand, and against a slow reference."""

import math

import numpy as np
import pytest
import torch

from densesiam_d2.layers import embedding_spread


def spread(z):
    return {name: value.item() for name, value in embedding_spread(z).items()}


def test_equal_vectors():
    z = torch.tensor([1.0, 2.0, -3.0, 0.5]).view(1, 4, 1, 1).expand(3, 4, 2, 5)
    assert spread(z) == pytest.approx(
        {"std": 0, "between": 0, "within": 0, "effective_rank": 1, "mean_norm": 1}, abs=1e-3
    )


def test_one_direction_per_image():
    """Each of 4 channels holds 1, 0, 0, 0: deviation sqrt((9/16 + 3/16) / 3) = 1/2, times sqrt(4).

    The covariance is that of a regular simplex: 3 equal eigenvalues. The mean is (1/4, 1/4, 1/4, 1/4).
    """
    z = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # lengths play no part
    assert spread(z) == pytest.approx({"std": 1, "between": 1, "effective_rank": 3, "mean_norm": 0.5}, abs=1e-5)


def test_images_constant_within_and_orthogonal_between():
    """Two images of 3 points. Each of 2 channels holds three 1 and three 0: deviation sqrt(6/4 / 5), times sqrt(2)."""
    z = torch.eye(2)[:, :, None].expand(2, 2, 3)
    expected = {"std": 0.6**0.5, "between": 1, "within": 0, "effective_rank": 1, "mean_norm": 0.5**0.5}
    assert spread(z) == pytest.approx(expected, abs=1e-5)


def test_points_orthogonal_and_images_alike():
    """What padding makes of a collapse: the same numbers with images and points exchanged; only ``between`` tells."""
    z = torch.eye(2)[None].expand(3, 2, 2)
    expected = {"std": 0.6**0.5, "between": 0, "within": 1, "effective_rank": 1, "mean_norm": 0.5**0.5}
    assert spread(z) == pytest.approx(expected, abs=1e-5)


def test_effective_rank_weighs_eigenvalues_of_the_covariance():
    """Six vectors along one axis and two along the other: eigenvalues 3/4 and 1/4, exp(entropy) = 4 / 3^(3/4)."""
    z = torch.tensor([[1.0, 0.0], [-1, 0]] * 3 + [[0, 1], [0, -1]])
    assert spread(z)["effective_rank"] == pytest.approx(4 / 3**0.75, rel=1e-5)


def test_images_alike_whose_raw_vectors_cancel():
    """Batch norm leaves raw vectors that sum to 0, but for noise. The directions do not cancel, and are all alike."""
    z = torch.tensor([[2.0, -1, -1], [0, 1, -1]])
    z = z.expand(8, 2, 3) + 1e-3 * torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    assert spread(z)["between"] < 0.01


def test_random_directions_are_ideal():
    z = torch.randn(64, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    values = spread(z)
    for name in ("std", "between", "within"):
        assert values[name] == pytest.approx(1, abs=0.05), name
    assert values["effective_rank"] == pytest.approx(16, abs=0.5)
    assert values["mean_norm"] < 0.05


def slow_reference(z):
    """The definitions in float64, one loop per word."""
    N, D, P = z.shape
    unit = np.array([[z[n, :, p] / math.sqrt(sum(z[n, :, p] ** 2)) for p in range(P)] for n in range(N)])  # (N, P, D)

    def deviation(vectors):
        per_channel = []
        for column in np.asarray(vectors).T:
            mean = sum(column) / len(column)
            per_channel.append(math.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1)))
        return math.sqrt(D) * sum(per_channel) / D

    pooled = [sum(image) / P for image in unit]
    vectors = unit.reshape(N * P, D)
    mean = sum(vectors) / len(vectors)
    variances = np.linalg.svd(vectors - mean, compute_uv=False) ** 2
    shares = [v / sum(variances) for v in variances if v > 1e-12]
    return {
        "std": deviation(vectors),
        "between": deviation([m / math.sqrt(sum(m**2)) for m in pooled]),
        "within": sum(deviation(image) for image in unit) / N,
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares)),
        "mean_norm": math.sqrt(sum(mean**2)),
    }


@pytest.mark.parametrize(("num_images", "dim", "num_points"), [(5, 6, 9), (3, 40, 4), (2, 3, 2)])
def test_slow_reference(num_images, dim, num_points):
    generator = torch.Generator().manual_seed(dim)
    z = torch.randn(num_images, dim, num_points, generator=generator) + torch.randn(dim, 1, generator=generator)
    assert spread(z) == pytest.approx(slow_reference(z.double().numpy()), rel=1e-4)


def test_undefined_numbers_are_left_out(recwarn):
    assert set(spread(torch.randn(1, 4, 3))) == {"std", "within", "effective_rank", "mean_norm"}
    assert set(spread(torch.randn(3, 4, 1, 1))) == {"std", "between", "effective_rank", "mean_norm"}
    assert set(spread(torch.randn(1, 4))) == {"mean_norm"}
    assert not recwarn.list


def test_every_column_of_many_points_counts():
    """25,088 vectors: every 7th, the smallest step to at most 4,096, would meet one column of the 7 x 7 points only.

    Each column has its own direction of 7: a regular simplex, rank 6.
    """
    z = torch.eye(7)[:, None, :].expand(512, 7, 7, 7)
    assert spread(z)["effective_rank"] == pytest.approx(6, rel=1e-4)


def test_float32_under_autocast_and_no_gradient():
    z = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = spread(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = embedding_spread(z)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in values.values())
    assert {name: value.item() for name, value in values.items()} == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_give_nan(bad):
    z = torch.randn(4, 8, 3)
    z[1, 2, 0] = bad
    assert all(math.isnan(value) for value in spread(z).values())
