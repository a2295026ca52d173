"""Mixed precision on CUDA (fp16 with loss scaling, or bf16) and on the CPU (bf16)."""

import logging
import time

import torch
from detectron2.engine.train_loop import SimpleTrainer

__all__ = ["MixedPrecisionTrainer"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class MixedPrecisionTrainer(SimpleTrainer):
    """The counterpart of detectron2's AMPTrainer that also runs on the CPU and scales the loss only where it must.

    detectron2's own asserts CUDA and always scales.
    """

    def __init__(self, model, data_loader, optimizer, *, device: str, precision: str):
        """Prepare autocast.

        Args:
            model, data_loader, optimizer: as in ``SimpleTrainer``.
            device: "cuda" or "cpu".
            precision: "fp16" or "bf16".
        """
        super().__init__(model, data_loader, optimizer)
        self._device = device
        self._dtype = DTYPES[precision]
        self.grad_scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def run_step(self) -> None:
        """Take one step: as ``SimpleTrainer``, with autocast around the model and a scaled loss."""
        assert self.model.training, "model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self._device, dtype=self._dtype):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        scale = state_dict.get("grad_scaler")
        if scale:
            self.grad_scaler.load_state_dict(scale)
        elif self.grad_scaler.is_enabled():
            logging.getLogger(__name__).info("the checkpoint is not of fp16 training: the loss scale starts anew")
