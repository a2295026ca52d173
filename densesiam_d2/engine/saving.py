"""Hooks that write checkpoints and delete old ones."""

import errno
import functools
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.checkpoint.resuming import own_checkpoints
from densesiam_d2.processes import PREEMPTED

__all__ = ["BestCheckpointHook", "CheckpointHook", "best_period"]

MAX_FAILURES = 3

logger = logging.getLogger(__name__)


class _Attempts:
    """Saves that may fail: the third failure in a row raises its error."""

    def __init__(self):
        self._failures = 0

    def __call__(self, name: str, save: Callable[[], None], *, must_work: bool) -> bool:
        """Call ``save`` and tell whether it worked; with ``must_work`` its first failure raises."""
        try:
            save()
        except (OSError, FloatingPointError) as error:
            self._failures += 1
            logger.error("could not save %s, no. %d in a row: %s", name, self._failures, error)
            if must_work or self._failures >= MAX_FAILURES:
                raise
            return False
        self._failures = 0
        return True


class CheckpointHook(HookBase):
    """Save every ``period`` iterations and at the end; when a signal asks to stop, save and exit with code 75.

    A failed save is tried again after the next period; the third failure in a row ends the run. Weights that are not
    finite are not saved.
    """

    def __init__(self, checkpointer, period: int, *, keep_last: int = 0, keep_every: int = 0):
        """Store the checkpointer and the settings.

        Args:
            checkpointer: a ``CheckedCheckpointer``.
            period: iterations between saves.
            keep_last: how many of the newest numbered checkpoints to keep; 0 keeps all.
            keep_every: never delete checkpoints whose number of iterations is a multiple of this; 0 turns this off.
        """
        self._checkpointer, self._period = checkpointer, period
        self._keep_last, self._keep_every = keep_last, keep_every
        self._attempt = _Attempts()

    def after_step(self) -> None:
        done, last = self.trainer.iter + 1, self.trainer.iter + 1 >= self.trainer.max_iter
        stop = getattr(self.trainer._trainer, "stop_agreed", False) and not last
        if (done % self._period == 0 or last or stop) and comm.is_main_process():
            name = "model_final" if last else f"model_{self.trainer.iter:07d}"
            self._attempt(name, functools.partial(self._save, name), must_work=last or stop)
        if stop:
            comm.synchronize()
            logger.warning("A signal asked to stop: saved at iteration %d, go on by --resume", self.trainer.iter)
            raise SystemExit(PREEMPTED)

    def _save(self, name: str) -> None:
        _check(self._checkpointer)
        self._checkpointer.save(name, iteration=self.trainer.iter)
        self._remove_old()

    def _remove_old(self) -> None:
        if not self._keep_last:
            return
        # Later iterations than this one: a run was resumed from before them, perhaps because they are damaged.
        done, files = self.trainer.iter + 1, own_checkpoints(self._checkpointer.save_dir)
        numbered = [path for path in files if 0 < _iterations(path) <= done]
        for path in sorted(numbered, key=_iterations)[: -self._keep_last]:
            if not (self._keep_every and _iterations(path) % self._keep_every == 0):
                path.unlink(missing_ok=True)


def _check(checkpointer) -> None:
    """Raise FloatingPointError for weights that are not finite, and OSError if a checkpoint does not fit the disk."""
    folder = Path(checkpointer.save_dir)
    tensors = [t for t in checkpointer.model.state_dict().values() if t.is_floating_point()]
    if tensors and not torch.nn.utils.get_total_norm(tensors).isfinite():
        raise FloatingPointError("the model has weights that are not finite")
    needed = max((path.stat().st_size for path in own_checkpoints(folder)), default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"a checkpoint needs {needed >> 20} MiB, {free >> 20} are free", str(folder))


def _iterations(path: Path) -> int:
    """Return the number of finished iterations from a checkpoint's name; 0 for names without a number."""
    number = re.fullmatch(r"model_(\d{7,})", path.stem)
    return int(number[1]) + 1 if number else 0


def best_period(cfg: CfgNode) -> int:
    """Return every how many iterations the value of TEST.BEST_METRIC is compared; 0 = only after training."""
    name = cfg.TEST.BEST_METRIC.removeprefix("-")
    if name.startswith("monitor/"):
        return cfg.TEST.MONITOR.PERIOD
    if name.startswith("probe/"):
        return cfg.TEST.PROBE.PERIOD
    logged_in_training = name.startswith(("ssl/", "loss_", "total_loss"))
    return cfg.TEST.EVAL_PERIOD or (cfg.SOLVER.CHECKPOINT_PERIOD if logged_in_training else 0)


class BestCheckpointHook(hooks.BestCheckpointer):
    """detectron2's ``BestCheckpointer``, for any number in the event storage, which goes on as before on a resume.

    Compared is the mean of what was logged since the last comparison. That is a score itself, and for a number that
    training logs often, it keeps the noise of single batches out. Checkpoints hold the best value and what is needed
    for the next comparison; register the hook before the one that writes them. A failed save is tried again at the next
    comparison, as by :class:`CheckpointHook`; the best value stays that of the file.

    Attributes:
        waited: number of comparisons since the best one.
    """

    def __init__(self, period: int, checkpointer, metric: str, *, on_best: Callable[[int], None] = lambda _: None):
        """Store the settings.

        Args:
            period: iterations between comparisons.
            checkpointer: a ``CheckedCheckpointer``.
            metric: a name in the event storage, such as "segm/AP"; with "-" before it the lowest value is the best.
            on_best: called with the number of finished iterations when a best model was saved.
        """
        name = metric.removeprefix("-")
        super().__init__(period, checkpointer, name, mode="max" if name == metric else "min")
        self._name, self._on_best = metric, on_best
        self._attempt = _Attempts()
        self._sum, self._count = 0.0, 0  # of what was logged since the last comparison
        self._noted_at = -1
        self.waited = 0

    def before_train(self) -> None:
        """Take the best value after the end of a run that is now made longer; the run's checkpoints are older."""
        file = Path(self._checkpointer.save_dir) / f"{self._file_prefix}.pth"
        if not (comm.is_main_process() and self.trainer.start_iter and file.is_file()):
            return
        try:
            state = read_checkpoint(file).get("trainer", {}).get("hooks", {}).get(type(self).__name__, {})
        except ValueError as error:
            logger.warning("%s; the next best model replaces it", error)
            return
        known = -1 if self.best_iter is None else self.best_iter
        if state.get("name") == self._name and known < state["best_iter"] <= self.trainer.start_iter:
            self.load_state_dict(state)

    def after_step(self) -> None:
        if comm.is_main_process():
            self._note()
            super().after_step()

    def after_train(self) -> None:
        if comm.is_main_process():
            self._note()
            super().after_train()

    def _note(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (0.0, -1))
        if iteration > self._noted_at:
            self._sum, self._count, self._noted_at = self._sum + value, self._count + 1, iteration

    def _best_checking(self) -> None:
        storage, name, before = self.trainer.storage, self._val_metric, (self.best_metric, self.best_iter)
        if not self._count:
            logger.warning("TEST.BEST_METRIC %s was not logged since the last comparison: nothing is saved", name)
            return
        value, best = self._sum / self._count, self.best_metric
        self._sum, self._count = 0.0, 0
        self.waited += 1
        if (best is None or self._compare(value, best)) and self._update_best(value, storage.iter):
            ended = storage.iter >= self.trainer.max_iter
            waited, self.waited = self.waited, 0  # set before, because the file holds it
            if self._attempt(self._file_prefix, self._save, must_work=ended):
                logger.info("%s is %.5g, the best so far: saved %s", name, value, self._file_prefix)
            else:
                self.best_metric, self.best_iter = before
                self.waited = waited

    def _save(self) -> None:
        iteration = self.trainer.storage.iter
        _check(self._checkpointer)
        self._checkpointer.save(self._file_prefix, tag=False, iteration=iteration)
        self._on_best(min(iteration + 1, self.trainer.max_iter))

    def state_dict(self) -> dict:
        best = {"best_metric": self.best_metric, "best_iter": self.best_iter, "waited": self.waited}
        return {**best, "sum": self._sum, "count": self._count, "name": self._name}

    def load_state_dict(self, state: dict) -> None:
        if state["name"] != self._name:
            logger.warning("TEST.BEST_METRIC was %s and is %s: its best starts anew", state["name"], self._name)
            return
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
        self.waited, self._sum, self._count = state["waited"], state["sum"], state["count"]
