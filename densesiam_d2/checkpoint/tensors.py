"""Collect all tensors of a checkpoint file under names without wrappers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from densesiam_d2.checkpoint.unpickling import Placeholder

__all__ = ["as_array", "bare_name", "is_tensor", "refuse_negative_variances", "refuse_quantized", "tensors_in"]

# Parts of names that come from wrapping or storing a network (DDP, torch.compile, FSDP, activation checkpointing,
# DeepSpeed, a whole module in a pickle), not from the network itself.
_WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
    *("_modules", "_parameters", "_buffers"),
}


def is_tensor(value: Any) -> bool:
    """Tell whether a value is a torch tensor or a NumPy array."""
    return isinstance(value, (torch.Tensor, np.ndarray))


def as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor or array of any type of numbers as a float32 array; it is copied only if necessary."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def refuse_quantized(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Raise ValueError if a tensor of a network holds whole numbers."""
    for name, value in tensors.items():
        if not (value.is_floating_point() if isinstance(value, torch.Tensor) else value.dtype.kind == "f"):
            raise ValueError(
                f"{name} is {value.dtype}, so the network is quantized: give weights in floating-point numbers"
            )


def refuse_negative_variances(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Raise ValueError if the running variance of a batch norm is negative."""
    for name, value in tensors.items():
        if name.endswith("running_var") and as_array(value).min(initial=0.0) < 0:
            raise ValueError(f"{name} holds negative variances: the file is damaged; give another")


def bare_name(name: str) -> str:
    """Return a name without the parts that wrappers added: ``module._orig_mod.fc.bias`` -> ``fc.bias``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def tensors_in(content: Any) -> dict[str, torch.Tensor | np.ndarray]:
    """Return every tensor in nested dicts, lists and placeholders.

    Args:
        content: the content of a file.

    Returns:
        Name -> tensor. A name is made of the keys that lead to the tensor, joined by dots, without wrappers. If two
        tensors would have the same name, one keeps its wrappers; if neither has any, the second gets the prefix
        "again". A dict that appears twice is read once.
    """
    tensors, seen, waiting = [], set(), [("", content)]
    while waiting:
        path, value = waiting.pop()
        if is_tensor(value):
            tensors.append((path, value))
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += reversed([(f"{path}.{key}".strip("."), child) for key, child in _children(value)])
    found, paths = {}, {path for path, _ in tensors}
    for path, value in tensors:
        name = bare_name(path)
        name = path if name in found or name in paths else name
        while name in found:
            name = f"again.{name}"
        found[name] = value
    return found


def _children(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from ((key, child) for key, child in value.items() if isinstance(key, (str, int)))
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, Placeholder):
        yield from _children(value.content)
        states = value.state if isinstance(value.state, tuple) else (value.state,)
        for part in (*value.arguments, *states):
            if isinstance(part, Mapping):
                yield from _children(part)
