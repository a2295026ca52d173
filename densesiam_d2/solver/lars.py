"""LARS: SGD for large batches, with a separate scale of the step for each tensor."""

from collections.abc import Callable, Iterable

import torch

__all__ = ["LARS"]


class LARS(torch.optim.Optimizer):
    """SGD with momentum and weight decay, where the step of each tensor is proportional to the norm of its weights.

    Let ``u = gradient + weight_decay * p`` and ``trust = trust_coefficient * |p| / (|u| + eps)``, or 1 if ``|p|`` or
    ``|u|`` is 0. Then::

        buffer = momentum * buffer + trust * u         p = p - lr * buffer     (BYOL, SlotCon, PixPro)
        buffer = momentum * buffer + lr * trust * u    p = p - buffer          (lr_in_momentum; the paper, SimCLR)

    Both give the same result as long as the learning rate is constant. Parameters of at most one dimension (biases,
    scales and shifts of norms) use ``u = gradient`` and ``trust = 1``.

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
        """Store parameters or parameter groups, as all optimizers of torch do, and the default options of a group."""
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
        """Take one step with the parameters that have gradients; return the result of the closure."""
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
        """Add the updates to the momentum, and move the parameters by the momentum."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        into_buffer, into_params = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=into_buffer)
        torch._foreach_add_(params, buffers, alpha=-into_params)


def _trust(params: list[torch.Tensor], updates: list[torch.Tensor], group: dict) -> tuple[torch.Tensor, ...]:
    """Return the trust factor of each tensor; all are computed together on the device."""
    weights, steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    trust = group["trust_coefficient"] * weights / (steps + group["eps"])
    return torch.where((weights > 0) & (steps > 0), trust, 1.0).unbind()
