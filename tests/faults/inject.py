"""train_net.py with a fault built in: ``python -m tests.faults.inject FAULT[,FAULT...] <train_net.py's arguments>``.

FAULT is kind:iteration[:rank]; the rank is 0 unless given. Kinds:

- kill, stop, term, usr1: the process sends itself SIGKILL, SIGSTOP, SIGTERM or SIGUSR1 before the step
- raise: an exception before the step
- nan_loss, nan_grad: the loss, or the gradient of one parameter, becomes NaN in this step
- nan_param: a weight is NaN after this step, before any checkpoint
- kill_worker: SIGKILL to a loader worker, as the system does when memory runs out
- hang_worker: SIGSTOP to all loader workers
- term_at_end: SIGTERM after the last step, where the evaluation is
- sleep: the process waits for a minute before the step
- slow: each step from this one on takes 0.2 s longer

The file "fault_<kind>" in OUTPUT_DIR says that a process has come to this place. Where the environment variable
DENSESIAM_D2_TEST_ONCE names a file, faults happen only while it does not exist.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

import train_net

VARIABLE = "DENSESIAM_D2_TEST_FAULTS"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}


class FaultHook(HookBase):
    """Does harm in one iteration of one process."""

    def __init__(self, kind: str, iteration: str, rank: str = "0"):
        self._kind, self._iteration, self._rank = kind, int(iteration), int(rank)

    def before_step(self) -> None:
        iteration = self.trainer.iter
        if self._kind == "slow" and iteration >= self._iteration:
            time.sleep(0.2)
        if iteration != self._iteration or comm.get_rank() != self._rank or self._happened():
            return
        Path(self.trainer.cfg.OUTPUT_DIR, f"fault_{self._kind}").touch()
        if self._kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self._kind])
        elif self._kind == "sleep":
            time.sleep(60)
        elif self._kind == "raise":
            raise ZeroDivisionError("a fault was asked for")
        elif self._kind in ("nan_loss", "nan_grad"):
            self._spoil_gradient()
        elif self._kind in ("kill_worker", "hang_worker"):
            number = signal.SIGKILL if self._kind == "kill_worker" else signal.SIGSTOP
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, number)

    def after_train(self) -> None:
        if self._kind == "term_at_end":
            os.kill(os.getpid(), signal.SIGTERM)

    def _happened(self) -> bool:
        once = os.environ.get("DENSESIAM_D2_TEST_ONCE")
        happened = once is not None and Path(once).exists()
        if once:
            Path(once).touch()
        return happened

    def after_step(self) -> None:
        if self._kind == "nan_param" and self.trainer.iter == self._iteration:
            with torch.no_grad():
                next(self.trainer.model.parameters())[0] = float("nan")

    def _spoil_gradient(self) -> None:
        model = self.trainer.model
        if self._kind == "nan_grad":
            parameter = next(p for p in model.parameters() if p.requires_grad)
            handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * float("nan"))[1])
            return

        def spoil(module, inputs, losses):
            handle.remove()
            name = next(iter(losses))
            return {**losses, name: losses[name] * float("nan")}

        handle = model.register_forward_hook(spoil)


def main(cfg, args):
    """Train with the faults in this process."""
    faults = os.environ[VARIABLE].split(",")
    build_hooks = train_net.Trainer.build_hooks
    train_net.Trainer.build_hooks = lambda self: [*(FaultHook(*f.split(":")) for f in faults), *build_hooks(self)]
    return train_net.main(cfg, args)


if __name__ == "__main__":
    os.environ[VARIABLE] = sys.argv[1]
    from tests.faults import inject  # spawned processes need a function that they can import

    train_net.run(inject.main, sys.argv[2:])
