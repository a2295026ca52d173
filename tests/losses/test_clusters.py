"""The weighted cross-entropy with stored labels, against a loop and against PyTorch's."""

import math

import torch
from torch.nn import functional as F

from densesiam_d2.losses import cluster_cross_entropy
from tests.evaluation.processes import in_two_processes


def drawn(num_images=3, clusters=4, side=2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_images, clusters, side, side, generator=generator)
    labels = torch.randint(0, clusters, (num_images, side, side), generator=generator)
    return logits, labels, torch.tensor([0.5, 0.3, 0.15, 0.05])


def by_loop(logits, labels, weights, images):
    """Sum w_y * -log softmax(logits)_y over the points of some images, and divide by the sum of w_y."""
    total = divisor = 0.0
    for n in images:
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            scores = [math.exp(v) for v in logits[n, :, row, column].tolist()]
            y = labels[n, row, column].item()
            total -= weights[y].item() * math.log(scores[y] / sum(scores))
            divisor += weights[y].item()
    return total / divisor


def test_equals_a_loop_and_pytorch():
    logits, labels, weights = drawn()
    loss = cluster_cross_entropy(logits, labels, weights).item()
    assert math.isclose(loss, by_loop(logits, labels, weights, range(3)), rel_tol=1e-5)
    assert math.isclose(loss, F.cross_entropy(logits, labels, weights).item(), rel_tol=1e-5)


def test_invalid_images_do_not_count_even_with_nan():
    logits, labels, weights = drawn()
    logits[1] = float("nan")
    logits.requires_grad_()
    loss = cluster_cross_entropy(logits, labels, weights, torch.tensor([True, False, True]))
    loss.backward()
    assert math.isclose(loss.item(), by_loop(logits, labels, weights, [0, 2]), rel_tol=1e-5)
    assert logits.grad.isfinite().all() and (logits.grad[1] == 0).all()


def test_no_valid_image_gives_zero():
    logits, labels, weights = drawn()
    assert cluster_cross_entropy(logits, labels, weights, torch.zeros(3, dtype=torch.bool)) == 0


def test_the_average_of_processes_is_the_mean_of_all_points():
    logits, labels, weights = drawn(num_images=2)
    labels[0], labels[1] = 0, 3  # the two processes have weights of 0.5 and 0.05 at each point

    def share(rank):
        return cluster_cross_entropy(logits[rank : rank + 1], labels[rank : rank + 1], weights)

    average = torch.stack(in_two_processes(share)).mean().item()
    assert math.isclose(average, by_loop(logits, labels, weights, [0, 1]), rel_tol=1e-5)
