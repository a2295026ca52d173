"""The loss of IIC against loops over displacements and pixels, and against numbers derived by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from densesiam_d2.losses import displaced_counts, mutual_information_loss


def counts_by_loops(p1, p2, mask, radius):
    """Return the (K, K) matrices of all displacements, row by row, as nested lists of scalars with gradients."""
    num_images, clusters, height, width = p1.shape
    matrices = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            matrix = [[p1.new_zeros(()) for _ in range(clusters)] for _ in range(clusters)]
            for n in range(num_images):
                for y in range(height):
                    for x in range(width):
                        if not (0 <= y + dy < height and 0 <= x + dx < width):
                            continue
                        if not (mask[n, y, x] and mask[n, y + dy, x + dx]):
                            continue
                        for i in range(clusters):
                            for j in range(clusters):
                                matrix[i][j] = matrix[i][j] + p1[n, i, y + dy, x + dx] * p2[n, j, y, x]
            matrices.append(matrix)
    return matrices


def loss_by_loops(p1, p2, mask, radius, weight):
    losses = []
    for matrix in counts_by_loops(p1, p2, mask, radius):
        clusters = range(len(matrix))
        total = sum(sum(row) for row in matrix)
        joint = [[(matrix[i][j] + matrix[j][i]) / (2 * total) for j in clusters] for i in clusters]
        marginal = [sum(joint[i]) for i in clusters]
        loss = 0
        for i in clusters:
            for j in clusters:
                ratio = joint[i][j].log() - weight * marginal[i].log() - weight * marginal[j].log()
                loss = loss - joint[i][j] * ratio
        losses.append(loss)
    return sum(losses) / len(losses)


def random_maps(clusters=3, height=4, width=5):
    generator = torch.Generator().manual_seed(0)
    p1, p2 = ((2 * torch.randn(2, clusters, height, width, generator=generator)).softmax(dim=1) for _ in range(2))
    return p1, p2, torch.rand(2, height, width, generator=generator) < 0.8


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_values_and_gradients_are_those_of_the_loops(radius, weight):
    p1, p2, mask = random_maps()
    ours, slow = ([p.detach().to(dtype).requires_grad_() for p in (p1, p2)] for dtype in (torch.float, torch.double))
    loss, expected = mutual_information_loss(*ours, mask, radius, weight), loss_by_loops(*slow, mask, radius, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for p, q in zip(ours, slow, strict=True):
        assert torch.allclose(p.grad.double(), q.grad, rtol=1e-4, atol=1e-7)
        assert q.grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("radius", "height", "width"),
    [(0, 4, 5), (2, 4, 5), (4, 4, 5), (3, 58, 59), (10, 70, 131), (20, 30, 100)],
    ids=["none", "one tile", "beyond the map", "exactly one tile, two", "two tiles, three", "larger tiles"],
)
def test_counts_are_those_of_the_papers_convolution(radius, height, width):
    """View 2 is the kernel, images are its input channels."""
    p1, p2, mask = random_maps(4, height, width)
    x1, x2 = ((p * mask[:, None]).transpose(0, 1) for p in (p1, p2))
    expected = F.conv2d(x1, x2, padding=radius).permute(2, 3, 0, 1)
    assert torch.allclose(displaced_counts(p1, p2, mask, radius), expected, rtol=1e-5, atol=1e-5)


def test_counts_of_one_pixel_by_hand():
    """View 1 has a pixel of cluster 1 one row below and two columns right of a pixel of cluster 0 in view 2."""
    p1, p2 = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    p1[0, 1, 3, 4], p2[0, 0, 2, 2] = 0.5, 0.25
    counts = displaced_counts(p1, p2, torch.ones(1, 5, 5, dtype=torch.bool), 2)
    expected = torch.zeros(5, 5, 2, 2)
    expected[2 + 1, 2 + 2, 1, 0] = 0.125
    assert torch.allclose(counts, expected, atol=1e-6)


def test_equal_halves_have_one_bit_and_uniform_maps_none():
    """Left half cluster 0, right half cluster 1: P is diag(1/2, 1/2), so the information is ln 2."""
    halves = torch.zeros(1, 2, 4, 4)
    halves[0, 0, :, :2] = halves[0, 1, :, 2:] = 1
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    assert mutual_information_loss(halves, halves, everything, 0).item() == pytest.approx(-math.log(2))
    assert mutual_information_loss(halves, halves.flip(1), everything, 0).item() == pytest.approx(-math.log(2))
    uniform = torch.full((1, 2, 4, 4), 0.5)
    assert mutual_information_loss(uniform, halves, everything, 0).item() == pytest.approx(0, abs=1e-6)
    # With weight 2 the marginals of 1/2 count twice: -(ln 1/2 - 4 ln 1/2) = -3 ln 2.
    assert mutual_information_loss(halves, halves, everything, 0, 2.0).item() == pytest.approx(-3 * math.log(2))


def test_nothing_in_common_is_zero_with_a_finite_gradient():
    p1, p2, _ = random_maps()
    p1.requires_grad_()
    loss = mutual_information_loss(p1, p2, torch.zeros(2, 4, 5, dtype=torch.bool), 1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9) and torch.equal(p1.grad, torch.zeros_like(p1))


def test_displacements_without_a_pair_count_as_zero():
    """A strip of 6 columns has no pairs 6 to 10 columns apart, where the transform leaves rounding errors."""
    generator = torch.Generator().manual_seed(0)
    p1, p2 = (torch.randn(1, 5, 24, 24, generator=generator).softmax(dim=1) for _ in range(2))
    strip = torch.zeros(1, 24, 24, dtype=torch.bool)
    strip[..., 9:15] = True
    inside = (p[..., 9:15].contiguous() for p in (p1, p2))
    whole = mutual_information_loss(*inside, torch.ones(1, 24, 6, dtype=torch.bool), 10)
    loss = mutual_information_loss(p1.requires_grad_(), p2, strip, 10)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-3) and -math.log(5) < loss.item() < 0
    loss.backward()
    assert p1.grad.isfinite().all() and p1.grad.abs().max() < 1


def test_half_precision_maps_are_counted_in_float32():
    p1, p2, mask = random_maps(height=32, width=32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mutual_information_loss(p1.bfloat16(), p2.bfloat16(), mask, 1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mutual_information_loss(p1.bfloat16().float(), p2.bfloat16().float(), mask, 1))
