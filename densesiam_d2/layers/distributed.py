"""Means, gathered rows and permutations over the images of all processes; all functions also work in one process."""

import torch
from torch import distributed as dist
from torch import nn

__all__ = [
    "gather",
    "gather_uneven",
    "gather_with_gradient",
    "mean_over_images",
    "shuffle",
    "unshuffle",
    "unwrap",
    "world_size",
]


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def mean_over_images(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return a mean of the valid images' values whose average over processes is the mean over all their valid images.

    DDP averages gradients over processes. With a plain local mean, an image would have a larger weight in a process
    with few valid images. So the local sum is divided by the mean number of valid images per process.

    Args:
        values: (N,) one value per image.
        valid: (N,) bool; None means that all are valid.

    Returns:
        Scalar; 0 with a gradient of 0 when no image of any process is valid.
    """
    if valid is None:
        return values.mean()
    weight = valid.to(values.dtype)
    count = weight.sum()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    # torch.where, because a multiplication by 0 would keep the NaN of an invalid image.
    return torch.where(valid, values, values.new_zeros(())).sum() / count.clamp(min=1 / world_size())


@torch.no_grad()
def gather(x: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes in the order of their ranks, without gradient.

    Args:
        x: (n, ...), with the same n in every process.

    Returns:
        (n * world size, ...); on one process ``x``, detached.
    """
    if world_size() == 1:
        return x.detach()
    x = x.contiguous()  # NCCL needs contiguous tensors
    rows = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(rows, x)
    return torch.cat(rows)


@torch.no_grad()
def gather_uneven(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the rows of all processes in the order of their ranks, without gradient; their numbers may differ.

    Args:
        x: (n, D), with a different n in every process, also 0.

    Returns:
        (sum of all n, D), and the place of this process's first row in it.
    """
    if world_size() == 1:
        return x.detach(), 0
    counts = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), x.shape[1])
    padded[: len(x)] = x
    rows = gather(padded).chunk(world_size())
    return torch.cat([own[:count] for own, count in zip(rows, counts, strict=True)]), sum(counts[: dist.get_rank()])


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes in the order of their ranks; gradients of all processes flow back to them.

    The gradient of a row is the sum of the gradients that the row gets in all processes, and DDP averages the gradients
    of parameters. So parameters get the gradient of the mean of the processes' losses. It equals the gradient of one
    process with the whole batch, without a further factor, in two cases: each process returns the mean over its own
    rows (compared with all rows), or each returns the loss of the whole batch.

    Args:
        x: (n, ...), with the same n in every process.

    Returns:
        (n * world size, ...); on one process ``x``.

    Source: SimCLR (google-research/simclr, objective.py) for the gradient of gathered rows.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """:func:`gather` with a gradient; the version in torch.distributed.nn is deprecated."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[dist.get_rank()]


@torch.no_grad()
def shuffle(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Permute the batch of all processes, so that batch norm's statistics do not show which images belong together.

    The default CPU generator of rank 0 draws the permutation, which is then sent to all processes. This generator gets
    a new seed in every iteration (engine/exact_resume.py), so methods need no generator of their own.

    Args:
        x: (n, ...), with the same n in every process.

    Returns:
        The rows of this process, (n, ...), without gradient, and the permutation, (n * world size), for
        :func:`unshuffle`.

    Source: MoCo, Sec. 3.3 (arXiv 1911.05722).
    """
    permutation = torch.randperm(len(x) * world_size()).to(x.device)
    if world_size() > 1:
        dist.broadcast(permutation, src=0)
    return _own_rows(gather(x), permutation), permutation


@torch.no_grad()
def unshuffle(x: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """Undo :func:`shuffle`.

    Args:
        x: (n, ...) what the network computed from the shuffled rows of this process.
        permutation: as returned by :func:`shuffle`.

    Returns:
        (n, ...) in the order of this process's batch, without gradient.
    """
    return _own_rows(gather(x), permutation.argsort())


def _own_rows(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return this process's part of all rows after they are sorted by ``order``."""
    return x[order.chunk(world_size())[dist.get_rank() if world_size() > 1 else 0]]
