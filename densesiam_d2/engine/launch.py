"""Start the processes of a run (one, several, on several machines, or under torchrun) and end them together."""

import argparse
import contextlib
import errno
import functools
import multiprocessing
import os
import signal
import socket
import sys
from datetime import timedelta

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch as launch_d2
from detectron2.utils import comm
from torch import distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.config_checks import ConfigError
from densesiam_d2.engine.collapse import CollapseError
from densesiam_d2.engine.signals import handle_stop_signals
from densesiam_d2.image_io import UnreadableImageError
from densesiam_d2.labels.findings import LabelsError
from densesiam_d2.layers import TooFewPointsError
from densesiam_d2.processes import INTERRUPTED, PREEMPTED, STOP_SIGNALS, end_with_parent

__all__ = ["launch", "under_torchrun"]

# A full disk or quota, a file system that cannot be written, a file above the size limit.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def under_torchrun() -> bool:
    """Tell whether torchrun, or a launcher that sets the same variables, has started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(main, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Call ``main(cfg, args)`` in every process of the run.

    Under torchrun the processes exist already, and ``--num-gpus``, ``--num-machines`` and ``--dist-url`` are not used.
    Otherwise detectron2 starts ``--num-gpus`` processes here; without a GPU these are CPU processes (gloo).

    Args:
        main: a function of a module, so that child processes can import it.
        cfg: the config, checked; MODEL.DEVICE and RUN.DIST_TIMEOUT_SECONDS are read here.
        args: the parsed command line.

    Raises:
        SystemExit: code 2: labels cannot be used, the model cannot be built, weights or checkpoint do not fit the
            config, or, in a single process, images cannot be read, files cannot be written, or the training diverged
            or collapsed. Code 75: the run was asked to stop, has saved, and can be resumed. Code 130: Ctrl-C came
            twice, nothing was saved. Code 1: a child process failed for another reason.
    """
    device, timeout = cfg.MODEL.DEVICE, timedelta(seconds=cfg.RUN.DIST_TIMEOUT_SECONDS)
    if under_torchrun():
        end_with_parent()
        _join_torchrun(device, timeout)
        try:
            _run_or_exit(main, cfg, args)
        finally:
            _leave_group()
        return
    if torch.device(device).type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else detectron2 would use GPUs and NCCL
    alone = args.num_gpus * args.num_machines == 1
    passed_on: list[int] = []
    try:
        with contextlib.nullcontext() if alone else handle_stop_signals(functools.partial(_pass_on, passed_on)):
            launch_d2(
                _run if alone else _run_child,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, cfg, args),
                timeout=timeout,
            )
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.kill()
        print("train_net.py: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ProcessExitedException as error:
        rank = args.machine_rank * args.num_gpus + error.error_index
        if passed_on and -error.exit_code in STOP_SIGNALS:  # it was still starting, with nothing to save
            sys.exit(PREEMPTED)
        explained = error.exit_code in (2, PREEMPTED, INTERRUPTED)  # the process has printed the reason
        if not explained:
            print(f"train_net.py: rank {rank} on {socket.gethostname()}: {error}", file=sys.stderr)
        sys.exit(error.exit_code if explained else 1)
    except ProcessRaisedException as error:
        rank = args.machine_rank * args.num_gpus + error.error_index
        lines = str(error).strip().splitlines()
        print(error, f"train_net.py: rank {rank} on {socket.gethostname()}: {lines[-1]}", sep="\n", file=sys.stderr)
        sys.exit(1)


def _pass_on(passed_on: list[int], number: int) -> None:
    """Pass a signal on; Ctrl-C as SIGTERM, because a terminal sends SIGINT to the children too, and two end them."""
    passed_on.append(number)
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid, signal.SIGTERM if number == signal.SIGINT else number)
    if not children:
        sys.exit(PREEMPTED)


def _run_child(main, cfg, args) -> None:
    end_with_parent()  # torch would end it by SIGINT, which background processes of a script ignore
    _run_or_exit(main, cfg, args)
    _leave_group()


def _run_or_exit(main, cfg, args) -> None:
    """Run one of several processes; exit at once if the run cannot start (code 2) or Ctrl-C came twice (130)."""
    try:
        _run(main, cfg, args)
    except KeyboardInterrupt:
        _exit_now(INTERRUPTED)
    except SystemExit as error:
        if error.code != 2:
            raise
        _exit_now(2)


def _exit_now(code: int) -> None:
    """Exit without cleaning up: with threads of the process group still running, a normal exit sometimes aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(main, cfg, args) -> None:
    try:
        with handle_stop_signals(lambda _: sys.exit(PREEMPTED)):  # used until training has a state to save
            main(cfg, args)
    except (UnreadableImageError, FloatingPointError, CollapseError) as error:  # log.txt has the traceback
        if comm.get_world_size() > 1:
            raise  # perhaps only this process has failed, and launch() names it
        # A loader process puts its traceback before the message.
        print(f"train_net.py: {str(error).rpartition(f'{type(error).__name__}: ')[2].strip()}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in CANNOT_WRITE or comm.get_world_size() > 1:
            raise
        again = "start again" if args.eval_only or args.dry_run else "go on by --resume"
        place = error.filename or cfg.OUTPUT_DIR
        print(
            f"train_net.py: {place}: {error.strerror}: make sure that it can be written and has room, then {again}",
            file=sys.stderr,
        )
        sys.exit(2)
    except (ConfigError, WeightsError, LabelsError, TooFewPointsError) as error:
        if comm.is_main_process():
            print(f"train_net.py: {error}", file=sys.stderr)
        _leave_group()
        sys.exit(2)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _join_torchrun(device: str, timeout: timedelta) -> None:
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if on_gpu else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # After a restart the store still holds addresses of processes that ended (pytorch#135712): use a new prefix.
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*place, is_master=False, timeout=timeout)
        store = dist.PrefixStore(f"densesiam_d2/attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
