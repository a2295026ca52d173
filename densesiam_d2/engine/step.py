"""One training step, in any precision. Steps whose loss or gradient is not finite are dropped in all processes."""

import contextlib
import logging
import math
import time
from typing import Any

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import distributed as dist
from torch import nn

from densesiam_d2.checkpoint.loading import WeightsError

__all__ = ["StepTrainer"]

OTHER_MODEL = "the checkpoint is of a model with other parameters: keep the keys of MODEL that shape it as they were"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


class ForwardState:
    """Saves and restores what a forward changes besides gradients: buffers, and modules with ``undo()``.

    A module with ``undo()`` (a teacher, a queue) undoes its last change itself. If it has ``undoes_buffers = True``,
    its buffers are not copied here.
    """

    def __init__(self, model: nn.Module):
        """Find the buffers and modules of a model, DDP-wrapped or not."""
        self._modules = [module for module in model.modules() if hasattr(module, "undo")]
        own = {id(b) for m in self._modules if getattr(m, "undoes_buffers", False) for b in m.buffers()}
        self._buffers = [buffer for buffer in model.buffers() if id(buffer) not in own]
        self._before = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Save the state before a forward."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def restore(self) -> None:
        """Return to the state before the last forward, bit for bit."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        for module in self._modules:
            module.undo()


def split_batch(batch: Any, parts: int) -> list:
    """Split a batch into equal parts.

    Args:
        batch: a list or tensor with one entry per image, or a dict of these, such as that of ``collate_views``.
        parts: their number; with 1 the batch may be anything.

    Raises:
        ValueError: the number of images is not a multiple of ``parts``.
    """
    if parts == 1:
        return [batch]
    num = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    if num % parts:
        raise ValueError(
            f"a batch has {num} images in a process; SOLVER.ACCUMULATE {parts} needs a multiple of {parts}"
        )
    rows = [slice(i * num // parts, (i + 1) * num // parts) for i in range(parts)]
    if isinstance(batch, dict):
        return [{key: values[own] for key, values in batch.items()} for own in rows]
    return [batch[own] for own in rows]


def _kind(groups: list[dict]) -> set[str]:
    """Return what tells parameter groups of SGD, AdamW and LARS apart; a torch version may add other options."""
    return {"nesterov", "betas", "trust_coefficient"} & groups[0].keys()


class StepTrainer(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, which drops steps that are not finite.

    To save memory, a batch can be split into parts that go through the model one after the other; their gradients are
    averaged before the optimizer's step. In modules that have an attribute ``batch_part``, it is set before each
    forward: (i, k) for part i of k. So a teacher or queue can change once per batch.

    If the loss or gradient of a step is not finite in any process, all processes drop the step: weights, momentum and
    everything that the forward has changed (statistics of batch norm, queues, teachers, centres) are restored. In fp16
    a dropped step also lowers the loss scale. The host waits for each step's numbers before it calls the optimizer, so
    this works with any optimizer.

    Attributes:
        stop_requested: set it to True in any process; ``stop_agreed`` then becomes True in all after the same step.
        stop_agreed: whether any process has asked to stop.
    """

    def __init__(
        self, model, data_loader, optimizer, *, precision: str = "fp32", max_dropped: int = 10, accumulate: int = 1
    ):
        """Prepare autocast and the gradient scaler.

        Args:
            model, data_loader, optimizer: as in ``SimpleTrainer``.
            precision: "fp32", "bf16" or, on CUDA, "fp16" with loss scaling. detectron2's AMPTrainer is CUDA only.
            max_dropped: steps dropped in a row after which training stops.
            accumulate: parts into which each batch is split.
        """
        super().__init__(model, data_loader, optimizer)
        self._device = next(model.parameters()).device
        self._dtype = DTYPES.get(precision)
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        self._max_dropped, self._dropped_in_row, self._dropped = max_dropped, 0, 0
        self._state = ForwardState(model)
        self._accumulate = accumulate
        self._part_modules = [module for module in model.modules() if hasattr(module, "batch_part")]
        self._last_numbers: dict[str, float] = {}
        self.stop_requested = self.stop_agreed = False

    def run_step(self) -> None:
        """Take one step, or drop it.

        Raises:
            FloatingPointError: too many steps in a row were dropped.
            RuntimeError: a loader worker was killed.
            ValueError: a batch cannot be split into equal parts.
        """
        assert self.model.training, "model was changed to eval mode"
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start
        self._state.remember()

        self.optimizer.zero_grad()
        loss_dict = self._forward_backward(data)
        self.grad_scaler.unscale_(self.optimizer)

        *values, stop = self._gather_numbers(loss_dict, data_time).tolist()
        numbers = dict(zip([*loss_dict, "grad_norm", "data_time"], values, strict=True))
        self.stop_agreed = stop > 0
        if all(map(math.isfinite, values)):
            self.optimizer.step()
            self._dropped_in_row, self._last_numbers = 0, numbers
            total = sum(numbers[name] for name in loss_dict)
            get_event_storage().put_scalars(total_loss=total, cur_iter=self.iter, **numbers)
        else:
            self._state.restore()
            self._note_dropped(numbers)
        self.grad_scaler.update()

    def _forward_backward(self, batch) -> dict[str, torch.Tensor]:
        """Add the gradients of a batch to the parameters; return its losses. Both are means over the parts."""
        parts, means = split_batch(batch, self._accumulate), {}
        for i, part in enumerate(parts):
            self._set_part(i, len(parts))
            with contextlib.nullcontext() if i == len(parts) - 1 else self._before_the_last_part():
                with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
                    loss_dict = self.model(part)
                    if isinstance(loss_dict, torch.Tensor):
                        loss_dict = {"loss": loss_dict}
                    losses = sum(loss_dict.values()) / len(parts)
                self.grad_scaler.scale(losses).backward()
            for name, loss in loss_dict.items():
                means[name] = means.get(name, 0) + loss.detach().float() / len(parts)
        self._set_part(0, 1)
        return means

    def _set_part(self, i: int, k: int) -> None:
        for module in self._part_modules:
            module.batch_part = (i, k)

    @contextlib.contextmanager
    def _before_the_last_part(self):
        """Leave gradients in their process, and what the model logs in a storage that nothing reads."""
        with getattr(self.model, "no_sync", contextlib.nullcontext)(), EventStorage(self.iter):
            yield

    def _next_batch(self):
        try:
            return next(self._data_loader_iter)
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A worker was killed, perhaps while it sent a batch. Errors raised by a worker's code start with "Caught".
            text = str(error).strip()
            cut_off = not isinstance(error, RuntimeError) and not text.startswith("Caught")
            if cut_off or text.startswith("DataLoader worker"):
                raise RuntimeError(
                    f"{text or 'DataLoader worker gone'}; most likely memory ran out: take fewer "
                    "DATALOADER.NUM_WORKERS or a smaller SOLVER.IMS_PER_BATCH, and go on by --resume"
                ) from error
            raise

    def _gather_numbers(self, loss_dict: dict[str, torch.Tensor], data_time: float) -> torch.Tensor:
        """Return losses, gradient norm, data time and ``stop_requested``, averaged over processes, on the device."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        numbers = torch.stack([value.detach().float().reshape(()) for value in (*loss_dict.values(), norm)])
        numbers = torch.cat([numbers, numbers.new_tensor([data_time, self.stop_requested])])
        if comm.get_world_size() > 1:
            dist.all_reduce(numbers)
            numbers /= comm.get_world_size()
        return numbers

    def _note_dropped(self, numbers: dict[str, float]) -> None:
        self._dropped += 1
        self._dropped_in_row += 1
        get_event_storage().put_scalar("dropped_steps", self._dropped, smoothing_hint=False, cur_iter=self.iter)
        text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name != "data_time")
        scale = f"; the loss scale was {self.grad_scaler.get_scale():g}" if self.grad_scaler.is_enabled() else ""
        logger.warning("iteration %d dropped, no. %d in a row: %s%s", self.iter, self._dropped_in_row, text, scale)
        if self._dropped_in_row >= self._max_dropped:
            last = ", ".join(f"{name} {value:.4g}" for name, value in self._last_numbers.items())
            rate = self.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(
                f"{self._dropped_in_row} steps in a row (RUN.MAX_DROPPED_STEPS) had a loss or gradient that is not "
                f"finite: {text}. The last good step had: {last or 'there was none'}. The learning rate is {rate:.4g}: "
                "lower SOLVER.BASE_LR, or set SOLVER.CLIP_GRADIENTS"
            )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        groups = self.optimizer.param_groups
        own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        stored = state_dict["optimizer"]["param_groups"]
        if _kind(stored) != _kind(groups):
            logger.warning("the checkpoint is of another SOLVER.OPTIMIZER, so momentum and the like start anew")
            state_dict = {**state_dict, "optimizer": self.optimizer.state_dict()}
        elif sum(len(group["params"]) for group in stored) != sum(len(group["params"]) for group in groups):
            raise WeightsError(f"--resume: {OTHER_MODEL}")
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            keys = (
                "BACKBONE_LR_FACTOR, LAST_LAYERS_LR_FACTOR, BIAS_LR_FACTOR, WEIGHT_DECAY_BIAS, WEIGHT_DECAY_NORM and "
                "FIX_PREDICTOR_LR"
            )
            raise WeightsError(f"--resume: {error}; keep SOLVER.{keys} as they were") from error
        of_parameters = ((p, value) for p, state in self.optimizer.state.items() for value in state.values())
        if any(isinstance(v, torch.Tensor) and v.ndim and v.shape != p.shape for p, v in of_parameters):
            raise WeightsError(f"--resume: {OTHER_MODEL}")
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)  # rate, decay and momentum are those of this run's config
        scale = state_dict.get("grad_scaler")
        if scale and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(scale)
        elif scale or self.grad_scaler.is_enabled():
            logger.info("the checkpoint and this run differ in precision: the loss scale starts anew")
