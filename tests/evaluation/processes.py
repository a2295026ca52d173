"""Run a function as the two ranks of a distributed job on CPU."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm


def in_two_processes(function: Callable[[int], Any]) -> list[Any]:
    """Return [function(0), function(1)], each called in its own (forked) process of one gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, args=(function, folder), nprocs=2, start_method="fork")
        return [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(2)]


def _run(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    torch.save(function(rank), f"{folder}/{rank}")
    dist.barrier()  # a process that leaves while the other still receives can abort it
    dist.destroy_process_group()
