"""One training step: in any precision, alike in all processes, and never with a gradient that is not finite."""

import logging
import math
import time
from collections import deque

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import distributed as dist

__all__ = ["StepTrainer"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


class StepTrainer(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, with guards.

    A step whose loss or gradient is not finite in any process is dropped in all of them: weights, momentum and the
    model's buffers (statistics of batch norm, queues) stay as they were. In fp16 that is also how the loss scale finds
    its way down.

    On a GPU the host does not wait for the step that it has just queued: with a fused optimizer the device itself drops
    the step, and losses are read one step later, or by :meth:`read_numbers`. On the CPU they are there at once.

    Attributes:
        stop_requested: set it in any process to have all of them see ``stop_agreed`` after the same step.
        stop_agreed: whether some process has asked to stop.
    """

    def __init__(self, model, data_loader, optimizer, *, precision: str = "fp32", max_dropped: int = 10):
        """Prepare autocast.

        Args:
            model, data_loader, optimizer: as in ``SimpleTrainer``.
            precision: "fp32", "bf16" or, on CUDA, "fp16" with loss scaling. detectron2's AMPTrainer is CUDA only.
            max_dropped: steps dropped in a row after which training stops.
        """
        super().__init__(model, data_loader, optimizer)
        self._device = next(model.parameters()).device
        self._dtype = DTYPES.get(precision)
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        self._max_dropped, self._dropped_in_row, self._dropped = max_dropped, 0, 0
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self._last_numbers: dict[str, float] = {}
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._runs_ahead = self._fused and self._device.type == "cuda"
        self._unread: deque[tuple] = deque()
        self.stop_requested = self.stop_agreed = False

    def run_step(self) -> None:
        """Take one step, or drop it.

        Raises:
            FloatingPointError: too many steps in a row were dropped.
            RuntimeError: a loader worker was killed.
        """
        assert self.model.training, "model was changed to eval mode"
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start
        if self._buffers:
            torch._foreach_copy_(self._buffers_before, self._buffers)

        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            loss_dict = self.model(data)
            if isinstance(loss_dict, torch.Tensor):
                loss_dict = {"loss": loss_dict}
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self.grad_scaler.unscale_(self.optimizer)

        numbers = self._gather_numbers(loss_dict, data_time)
        self._update(~numbers.isfinite().all())
        self.grad_scaler.update()
        copy = numbers.to("cpu", non_blocking=True)  # into pinned memory
        event = torch.cuda.Event() if numbers.is_cuda else None
        if event:
            event.record()
        self._unread.append((self.iter, tuple(loss_dict), copy, event))
        self.read_numbers(but=int(self._runs_ahead))

    def _update(self, bad: torch.Tensor) -> None:
        """Step the optimizer unless ``bad``, a boolean scalar on the device, is true; then restore the buffers."""
        if self._runs_ahead:
            self.optimizer.found_inf = bad.float()
            self.optimizer.step()
            if self._buffers:
                before, after = (torch.cat([b.flatten() for b in x]) for x in (self._buffers_before, self._buffers))
                kept = torch.where(bad, before, after).split([b.numel() for b in self._buffers])
                torch._foreach_copy_(self._buffers, [k.view(b.shape) for k, b in zip(kept, self._buffers, strict=True)])
        elif not bad:
            self.optimizer.found_inf = None  # of GradScaler, which is not asked: ``bad`` knows all processes
            self.optimizer.step()
        elif self._buffers:
            torch._foreach_copy_(self._buffers, self._buffers_before)

    def read_numbers(self, but: int = 0) -> None:
        """Wait for the numbers of all steps so far ``but`` the last few, log them, and look for what went wrong.

        Raises:
            FloatingPointError: too many steps in a row were dropped.
        """
        while len(self._unread) > but:
            iteration, losses, numbers, event = self._unread.popleft()
            if event:
                event.synchronize()
            *values, stop = numbers.tolist()
            numbers = dict(zip([*losses, "grad_norm", "data_time"], values, strict=True))
            self.stop_agreed = stop > 0
            if all(map(math.isfinite, values)):
                self._dropped_in_row, self._last_numbers = 0, numbers
                total = sum(numbers[name] for name in losses)
                get_event_storage().put_scalars(total_loss=total, cur_iter=iteration, **numbers)
            else:
                self._note_dropped(iteration, numbers)

    def _next_batch(self):
        try:
            return next(self._data_loader_iter)
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A worker was killed, perhaps while it handed a batch over. What a worker itself raised says "Caught".
            text = str(error).strip()
            cut_off = not isinstance(error, RuntimeError) and not text.startswith("Caught")
            if cut_off or text.startswith("DataLoader worker"):
                raise RuntimeError(
                    f"{text or 'DataLoader worker gone'}; most likely memory ran out: take fewer "
                    "DATALOADER.NUM_WORKERS or a smaller SOLVER.IMS_PER_BATCH, and go on by --resume"
                ) from error
            raise

    def _gather_numbers(self, loss_dict: dict[str, torch.Tensor], data_time: float) -> torch.Tensor:
        """Return losses, gradient norm, data time and the wish to stop, averaged over processes, on the device."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        numbers = torch.stack([value.detach().float().reshape(()) for value in (*loss_dict.values(), norm)])
        numbers = torch.cat([numbers, numbers.new_tensor([data_time, self.stop_requested])])
        if comm.get_world_size() > 1:
            dist.all_reduce(numbers)
            numbers /= comm.get_world_size()
        return numbers

    def _note_dropped(self, iteration: int, numbers: dict[str, float]) -> None:
        self._dropped += 1
        self._dropped_in_row += 1
        get_event_storage().put_scalar("dropped_steps", self._dropped, smoothing_hint=False, cur_iter=iteration)
        text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name != "data_time")
        scale = f"; the loss scale was {self.grad_scaler.get_scale():g}" if self.grad_scaler.is_enabled() else ""
        logger.warning("iteration %d dropped, no. %d in a row: %s%s", iteration, self._dropped_in_row, text, scale)
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
        super().load_state_dict(state_dict)
        for group in self.optimizer.param_groups:  # whatever the checkpoint's was
            group["fused"] = self._fused
        scale = state_dict.get("grad_scaler")
        if scale and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(scale)
        elif scale or self.grad_scaler.is_enabled():
            logger.info("the checkpoint and this run differ in precision: the loss scale starts anew")
