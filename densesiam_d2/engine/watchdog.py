"""End a run that hangs: print its stacks, and exit with a code that tells a scheduler to start it again."""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import active_children

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed as dist

from densesiam_d2.processes import PREEMPTED

__all__ = ["WatchdogHook"]

LOOK_SECONDS = 4.0  # a live process increases its counter several times in this time


class WatchdogHook(HookBase):
    """Exit with code 75 when a step takes too long: a dead mount, a stuck worker, a frozen process elsewhere.

    Before it exits, each process writes the stacks of all its threads to stderr, makes its loader workers write theirs,
    and names the processes of the run that do not respond. Only steps are timed, not saves or evaluations. Register
    this hook first.
    """

    def __init__(self, limit: float):
        """Store the time limit of a step in seconds; 0 turns the watchdog off."""
        self._limit = limit
        self._started: float | None = None  # start time of the current step
        self._over = threading.Event()

    def before_train(self) -> None:
        if self._limit > 0:
            signs = SignsOfLife(self._over) if comm.get_world_size() > 1 else None
            threading.Thread(target=self._watch, args=(signs,), daemon=True, name="watchdog").start()

    def before_step(self) -> None:
        self._started = time.monotonic()

    def after_step(self) -> None:
        self._started = None

    def after_train(self) -> None:
        self._over.set()

    def _watch(self, signs: "SignsOfLife | None") -> None:
        while not self._over.wait(1.0):
            started = self._started
            if started is not None and time.monotonic() - started > self._limit:
                self._leave(signs)

    def _leave(self, signs: "SignsOfLife | None") -> None:
        rank, host = comm.get_rank(), socket.gethostname()
        text = f"rank {rank} on {host} (pid {os.getpid()}): no step done for {self._limit:g} s (RUN.WATCHDOG_SECONDS)"
        print(f"{text}; the stacks:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(2, all_threads=True)  # 2 is stderr; in a notebook sys.stderr is not a file
        for worker in active_children():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGABRT)  # makes it print its stack
        time.sleep(1)
        for worker in active_children():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGKILL)
        if signs:
            # The frozen process may be the one that holds the store, so do not wait for an answer without a limit.
            asking = threading.Thread(target=signs.report, daemon=True)
            asking.start()
            asking.join(3 * LOOK_SECONDS)
            if asking.is_alive():
                print("the list of processes, kept by rank 0 or torchrun, does not answer", file=sys.stderr, flush=True)
        print(f"{text}; leaving with exit code {PREEMPTED}, go on by --resume", file=sys.stderr, flush=True)
        os._exit(PREEMPTED)


class SignsOfLife:
    """One counter per process in the store of the process group; a process that runs increases its own every second."""

    def __init__(self, over: threading.Event):
        """Start a thread that increases this process's counter until ``over`` is set."""
        self._store = dist.distributed_c10d._get_default_store()
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        self._store.set(self._key(self._rank), f"{socket.gethostname()} (pid {os.getpid()})")
        threading.Thread(target=self._give, args=(over,), daemon=True, name="signs of life").start()

    def _key(self, rank: int) -> str:
        return f"densesiam_d2/who/{rank}"

    def _give(self, over: threading.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the store has ended: the training step fails too
            while not over.wait(1.0):
                self._store.add(f"{self._key(self._rank)}/signs", 1)

    def report(self) -> None:
        """Print to stderr the processes whose counters do not increase."""
        with contextlib.suppress(RuntimeError):
            first = self._counts()
            time.sleep(LOOK_SECONDS)
            for rank, (before, after) in enumerate(zip(first, self._counts(), strict=True)):
                if before == after:
                    who = self._store.get(self._key(rank)).decode()
                    print(f"rank {rank} on {who} gives no sign of life", file=sys.stderr, flush=True)

    def _counts(self) -> list[int]:
        return [self._store.add(f"{self._key(rank)}/signs", 0) for rank in range(self._world_size)]
