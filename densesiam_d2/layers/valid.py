"""Leave images out of a loss without changing tensor shapes."""

import torch

__all__ = ["blank_invalid"]


def blank_invalid(x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Replace the values of invalid images by zeros; this also stops their gradients, even if they are NaN.

    Args:
        x: (N, ...).
        valid: (N,) bool; None leaves ``x`` as it is.
    """
    if valid is None:
        return x
    return torch.where(valid.view(-1, *[1] * (x.dim() - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device))
