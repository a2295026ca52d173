"""What processes do together: two gloo processes against numbers by hand and against one process."""

import math

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import (
    FeatureQueue,
    MomentumTeacher,
    gather,
    gather_uneven,
    gather_with_gradient,
    mean_over_images,
    shuffle,
    unshuffle,
    world_size,
)


def test_one_process_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert world_size() == 1
    assert mean_over_images(values).item() == 3  # (1 + 2 + 6) / 3
    assert mean_over_images(values, torch.tensor([True, False, True])).item() == 3.5  # (1 + 6) / 2
    assert mean_over_images(values, torch.tensor([False, False, False])).item() == 0


def test_value_that_is_not_a_number_is_left_out():
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = mean_over_images(values, torch.tensor([True, False]))
    mean.backward()
    assert mean.item() == 1
    assert values.grad.tolist() == [1, 0]


def _mean_of_results(value: torch.Tensor) -> float:
    """What DDP makes of it: the plain mean over both processes."""
    value = value.detach().clone()
    dist.all_reduce(value)
    return value.item() / 2


def _run(rank: int, init_file: str, check) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    assert world_size() == 2
    check(rank)
    dist.destroy_process_group()


def _in_two_processes(check, tmp_path) -> None:
    mp.spawn(_run, args=(str(tmp_path / "init"), check), nprocs=2)  # an assertion that fails there is raised here


def _check_mean(rank: int) -> None:
    # Rank 0 keeps 1, 2, 3, rank 1 keeps 10: the global mean is 16 / 4 = 4. There are 2 valid images per process, so the
    # ranks return 6 / 2 = 3 and 10 / 2 = 5. (Local means 2 and 10 would average to 6.)
    values = torch.tensor([[1.0, 2, 3, 100], [10.0, 100, 100, 100]][rank])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]][rank])
    local = mean_over_images(values, valid)
    assert local.item() == pytest.approx([3, 5][rank])
    assert _mean_of_results(local) == pytest.approx(4)

    # Nothing but one image, valued 7, on rank 1: half an image per process.
    lone = mean_over_images(torch.tensor([7.0]), torch.tensor([rank == 1]))
    assert lone.item() == pytest.approx([0, 14][rank])
    assert _mean_of_results(lone) == pytest.approx(7)

    # No image anywhere.
    assert mean_over_images(torch.tensor([7.0]), torch.tensor([False])).item() == 0

    # Through DDP: the loss of image i is w * values_i, so dw is the global mean 4, equal on both ranks.
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1, bias=False))
    mean_over_images(model(values[:, None])[:, 0], valid).backward()
    assert model.module.weight.grad.item() == pytest.approx(4)


def test_two_processes_with_unequal_numbers_of_valid_images(tmp_path):
    _in_two_processes(_check_mean, tmp_path)


def test_one_process_gathers_itself():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert torch.equal(gather(x), x) and not gather(x).requires_grad


def _check_gather(rank: int) -> None:
    x = torch.arange(6.0).view(3, 2) + 10 * rank
    expected = [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
    assert gather(x.requires_grad_()).tolist() == expected
    assert not gather(x).requires_grad
    assert gather_with_gradient(x).tolist() == expected
    assert gather(x.detach().repeat(1, 2)[:, ::3]).tolist() == expected  # not contiguous
    assert gather(torch.tensor([rank == 1])).tolist() == [False, True]
    assert gather(torch.full((2, 1), rank + 0.5, dtype=torch.bfloat16))[:, 0].tolist() == [0.5, 0.5, 1.5, 1.5]
    assert gather(torch.zeros(0, 4)).shape == (0, 4)

    # Rank r weighs gathered row i by (r + 1) * i: row i gets (1 + 2) * i from both.
    weights = (rank + 1) * torch.arange(6.0)
    (gather_with_gradient(x) * weights[:, None]).sum().backward()
    assert x.grad.tolist() == [[9 * rank + 3 * i] * 2 for i in range(3)]

    # A sum hands the same gradient to both summands; the other one must still get that of its own process.
    other = torch.ones(6, 2, requires_grad=True)
    ((2 * other + gather_with_gradient(x)) * (rank + 1)).sum().backward()
    assert (other.grad == 2 * (rank + 1)).all()


def test_two_processes_gather_rows_and_gradients(tmp_path):
    _in_two_processes(_check_gather, tmp_path)


def test_one_process_gathers_its_own_rows():
    x = torch.randn(3, 2, requires_grad=True)
    rows, first = gather_uneven(x)
    assert torch.equal(rows, x) and not rows.requires_grad and first == 0


def _check_gather_uneven(rank: int) -> None:
    x = torch.arange(6.0, requires_grad=True).view(3, 2) + 10 * rank
    rows, first = gather_uneven(x[: 1 + 2 * rank])
    assert rows.tolist() == [[0, 1], [10, 11], [12, 13], [14, 15]] and first == rank and not rows.requires_grad
    rows, first = gather_uneven(x[: 2 - 2 * rank])  # the second process has none
    assert rows.tolist() == [[0, 1], [2, 3]] and first == 2 * rank
    assert gather_uneven(x[:0])[0].shape == (0, 2)


def test_two_processes_gather_different_numbers_of_rows(tmp_path):
    _in_two_processes(_check_gather_uneven, tmp_path)


def _nets():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    return net, torch.randn(2, 6, 5, dtype=torch.float64)  # two views of 6 images


def _contrast(a: torch.Tensor, b: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over rows of ``a`` of the cross-entropy that tells which row of ``b`` shows the same image."""
    return F.cross_entropy(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.2, targets)


def _check_contrast(rank: int) -> None:
    net, views = _nets()
    _contrast(*map(net, views), torch.arange(6)).backward()
    expected = [p.grad.clone() for p in net.parameters()]

    def gradient(loss_of):
        wrapped = nn.parallel.DistributedDataParallel(net)
        net.zero_grad()
        a, b = wrapped(views[:, 3 * rank : 3 * rank + 3].reshape(6, 5)).chunk(2)
        loss_of(a, b).backward()
        return [p.grad.clone() for p in net.parameters()]

    def close(these):
        return all(torch.allclose(p, e, atol=1e-12) for p, e in zip(these, expected, strict=True))

    own = torch.arange(3) + 3 * rank
    assert close(gradient(lambda a, b: _contrast(a, gather_with_gradient(b), own)))
    assert close(gradient(lambda a, b: _contrast(*map(gather_with_gradient, (a, b)), torch.arange(6))))
    assert not close(gradient(lambda a, b: _contrast(a, gather(b), own)))  # without the gradient of gathered rows


def test_two_processes_have_the_contrastive_gradient_of_one(tmp_path):
    _in_two_processes(_check_contrast, tmp_path)


def test_one_process_shuffles_its_batch():
    x = torch.arange(50.0).view(50, 1)
    torch.manual_seed(3)
    shuffled, permutation = shuffle(x)
    assert sorted(permutation.tolist()) == list(range(50)) != permutation.tolist()
    assert shuffled[:, 0].tolist() == permutation.tolist()  # row i is image permutation[i]
    assert torch.equal(unshuffle(shuffled, permutation), x)
    torch.manual_seed(3)
    assert torch.equal(shuffle(x)[1], permutation)


def _check_shuffle(rank: int) -> None:
    torch.manual_seed(rank)
    x = torch.arange(20.0).view(20, 1) + 20 * rank
    shuffled, permutation = shuffle(x.requires_grad_())
    torch.manual_seed(0)
    assert torch.equal(permutation, torch.randperm(40))  # as rank 0 draws it, on both
    assert shuffled[:, 0].tolist() == permutation[20 * rank : 20 * rank + 20].tolist()
    assert 0 < (shuffled >= 20).sum() < 20  # images of both processes
    assert not shuffled.requires_grad

    # What is computed of a shuffled image comes back to its process and place.
    keys = unshuffle(shuffled.expand(-1, 3) * 2, permutation)
    assert torch.equal(keys, 2 * x.detach().expand(-1, 3))


def test_two_processes_shuffle_over_both(tmp_path):
    _in_two_processes(_check_shuffle, tmp_path)


class _Contrast(nn.Module):
    """A student, its teacher and a queue of the teacher's features."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.teacher = MomentumTeacher(net=self.net)
        self.queue = FeatureQueue(2, 5)

    def forward(self, x: torch.Tensor, momentum: float) -> torch.Tensor:
        self.teacher.update(momentum)
        loss = F.cross_entropy(self.net(x) @ self.queue.features.clone().T, torch.zeros(len(x), dtype=torch.long))
        self.queue.push(gather(self.teacher.net(x)))
        return loss


def _check_teacher_and_queue(rank: int) -> None:
    torch.manual_seed(rank)  # weights and images differ
    model = nn.parallel.DistributedDataParallel(_Contrast(), broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for momentum in (0, 0.9, 0.9):
        optimizer.zero_grad()
        model(torch.randn(2, 3), momentum).backward()
        optimizer.step()
    state = model.module.state_dict()
    assert state.keys() == {f"{part}.{n}" for part in ("net", "teacher.net") for n in ("weight", "bias")} | {
        "queue.features",
        "queue.pointer",
    }
    assert state["queue.pointer"].item() == 2  # 3 steps of 4 images, modulo 5
    assert not torch.equal(state["net.bias"], state["teacher.net.bias"])
    for name, value in state.items():
        assert torch.equal(*gather(value[None])), name


def test_teacher_and_queue_are_equal_in_two_processes(tmp_path):
    _in_two_processes(_check_teacher_and_queue, tmp_path)
