"""Start the processes of a run: one, several on this machine, several machines, or those torchrun has started."""

import os

import torch
from detectron2.engine import launch as launch_d2
from detectron2.utils import comm
from torch import distributed as dist

__all__ = ["launch", "under_torchrun"]


def under_torchrun() -> bool:
    """Tell whether torchrun, or something like it, has started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(main, args, *, device: str) -> None:
    """Call ``main(args)`` in every process of the run.

    Under torchrun the processes exist already, and ``--num-gpus``, ``--num-machines`` and ``--dist-url`` are its
    business. Otherwise detectron2 starts ``--num-gpus`` processes here; without a GPU these are CPU processes (gloo).

    Args:
        main: a function of a module, so that child processes can import it.
        args: the parsed command line.
        device: ``MODEL.DEVICE``.
    """
    if under_torchrun():
        _join_torchrun(device)
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    if torch.device(device).type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or detectron2's processes would claim GPUs and speak NCCL
    launch_d2(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _join_torchrun(device: str) -> None:
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
