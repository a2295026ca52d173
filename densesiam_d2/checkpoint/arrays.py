"""How arrays and tensors in a file are built again: from numbers only, within the bytes that the file has."""

from typing import Any

import numpy as np
import torch

__all__ = ["DTYPES", "STORAGES", "Array", "Dtype", "storage", "tensor", "tensor_of_dtype"]

_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]

# torch.float32 and so on, by name.
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

# What a file of torch.save calls the type of a tensor's memory. Quantized numbers are not among them.
STORAGES = {
    "UntypedStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}


class Dtype:
    """Stands for ``numpy.dtype`` in a file; of its state only the byte order counts.

    NumPy believes what a file says about a dtype: objects then lie wherever the file says.

    Attributes:
        plain: the dtype; None if it is not one of numbers.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        plain = np.dtype(code) if isinstance(code, str) else None
        self.plain = plain if plain is not None and plain.kind in "biufc" else None

    def __setstate__(self, state: tuple) -> None:
        if self.plain is not None:
            self.plain = self.plain.newbyteorder(state[1])


class Array(np.ndarray):
    """Stands for ``numpy.ndarray`` in a file, and is one. Stays empty where the file has no numbers for it."""

    def __new__(cls, *_: Any) -> "Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        if dtype.plain is not None:
            super().__setstate__((version, shape, dtype.plain, is_fortran, data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)


def scalar(dtype: Dtype, data: Any) -> np.generic | None:
    """Return one number, as NumPy pickles it; None if it is no number."""
    return None if dtype.plain is None else _SCALAR(dtype.plain, data)


def from_buffer(data: Any, dtype: Dtype, shape: tuple, order: str) -> np.ndarray | None:
    """Return an array, as NumPy pickles it in protocol 5; None if it is not of numbers."""
    return None if dtype.plain is None else _FROM_BUFFER(data, dtype.plain, shape, order)


def storage(data: bytearray) -> torch.Tensor:
    """Return a (N,) uint8 tensor that has N bytes as its memory."""
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def tensor(memory: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor | None:
    """Return a tensor in a memory; torch checks that it lies inside.

    Args:
        memory: (N,) tensor with all numbers of the memory; anything else stands for a memory that is not read.
        offset: first number.
        size: shape of the tensor.
        stride: numbers between neighbours, per dimension.
    """
    if not isinstance(memory, torch.Tensor):
        return None
    return memory.as_strided(tuple(size), tuple(stride), memory.storage_offset() + offset)


def tensor_of_dtype(memory: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> torch.Tensor | None:
    """Return a tensor of a type that has no class of memory: its dtype is the third of ``rest``."""
    if not isinstance(memory, torch.Tensor) or not isinstance(rest[2], torch.dtype):
        return None
    return tensor(memory.view(rest[2]), offset, size, stride)
