"""LARS: SGD whose step is scaled tensor by tensor, for large batches."""

from collections.abc import Callable, Iterable

import torch

__all__ = ["LARS"]


class LARS(torch.optim.Optimizer):
    """SGD with momentum and weight decay, where the step of each tensor is proportional to the norm of its weights.

    With ``u = gradient + weight_decay * p`` and ``trust = trust_coefficient * |p| / (|u| + eps)``, which is 1 where
    either norm is 0::

        buffer = momentum * buffer + trust * u         p = p - lr * buffer     (BYOL, SlotCon, PixPro)
        buffer = momentum * buffer + lr * trust * u    p = p - buffer          (lr_in_momentum; the paper, SimCLR)

    Both are equal while the learning rate does not change. Parameters of at most one dimension (biases, scales and
    shifts of norms) have ``u = gradient`` and ``trust = 1``.

    Source: "Large Batch Training of Convolutional Networks", Algorithm 1 (arXiv 1708.03888); google-research/simclr,
    lars_optimizer.py; BYOL (google-deepmind/deepmind-research, byol/utils/optimizers.py).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        lr_in_momentum: bool = False,
    ):
        """Take parameters or parameter groups, as all of torch's optimizers do, and the options of every group."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "lr_in_momentum": lr_in_momentum,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients that there are; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            adapted = [p for p in params if p.ndim > 1]
            plain = [p for p in params if p.ndim <= 1]
            if adapted:
                updates = torch._foreach_add([p.grad for p in adapted], adapted, alpha=group["weight_decay"])
                torch._foreach_mul_(updates, _trust(adapted, updates, group))
                self._move(adapted, updates, group)
            if plain:
                self._move(plain, [p.grad for p in plain], group)
        return loss

    def _move(self, params: list[torch.Tensor], updates: list[torch.Tensor], group: dict) -> None:
        """Add updates to the momentum, and the momentum to the parameters."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        into_buffer, into_params = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=into_buffer)
        torch._foreach_add_(params, buffers, alpha=-into_params)


def _trust(params: list[torch.Tensor], updates: list[torch.Tensor], group: dict) -> tuple[torch.Tensor, ...]:
    """Return the factor of each tensor, computed on the device for all of them together."""
    weights, steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    trust = group["trust_coefficient"] * weights / (steps + group["eps"])
    return torch.where((weights > 0) & (steps > 0), trust, 1.0).unbind()
