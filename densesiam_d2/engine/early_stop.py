"""End a training whose best value is old, in all processes after the same step."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from densesiam_d2.engine.saving import BestCheckpointHook

__all__ = ["EarlyStopHook", "LeaveLoopHook", "StoppedEarly"]

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """Leaves detectron2's training loop; not an ``Exception``, because the loop logs those as failures."""


class EarlyStopHook(HookBase):
    """Make the current step the last one when a number of comparisons in a row brought no new best value.

    The training then ends as if it had reached SOLVER.MAX_ITER, with ``model_final.pth`` and the exported backbone.
    The number of comparisons is in the checkpoints (see :class:`BestCheckpointHook`), so that a resumed run stops where
    an uninterrupted one does. Register this hook between the one that compares and the one that writes checkpoints.

    Attributes:
        stopped: whether the current step is the last one for this reason.
    """

    def __init__(self, best: BestCheckpointHook, period: int, patience: int):
        """Store the settings.

        Args:
            best: the hook that compares values.
            period: its period in iterations.
            patience: number of comparisons without a new best value that end the training.

        Raises:
            ValueError: values are compared only after training.
        """
        if period < 1:
            raise ValueError(f"TEST.PATIENCE is {patience}; nothing is scored during training: set TEST.EVAL_PERIOD")
        self._best, self._period, self._patience = best, period, patience
        self.stopped = False

    def exhausted(self) -> bool:
        """Tell whether the main process has waited long enough; call it in all processes."""
        return comm.all_gather(self._best.waited)[0] >= self._patience

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 and done < self.trainer.max_iter and self.exhausted():
            logger.info(
                "No new best value in %d comparisons (TEST.PATIENCE): training ends after iteration %d",
                self._patience,
                self.trainer.iter,
            )
            self.trainer.max_iter = done
            self.stopped = True


class LeaveLoopHook(HookBase):
    """Leave the training loop after the step that :class:`EarlyStopHook` made the last one; register this hook last."""

    def __init__(self, early_stop: EarlyStopHook):
        """Store the hook that decides."""
        self._early_stop = early_stop

    def after_step(self) -> None:
        if self._early_stop.stopped:
            self.trainer.iter += 1  # as after the last step of the loop
            raise StoppedEarly
