"""Means over the images of all processes: two gloo processes against numbers by hand."""

import math

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from densesiam_d2.layers import mean_over_images, world_size


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


def _check(rank: int, init_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    assert world_size() == 2

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
    dist.destroy_process_group()


def test_two_processes_with_unequal_numbers_of_valid_images(tmp_path):
    mp.spawn(_check, args=(str(tmp_path / "init"),), nprocs=2)  # an assertion that fails there is raised here
