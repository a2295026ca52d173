"""Rebuild arrays and tensors of a pickle. Only arrays of numbers are built, and only from bytes in the file."""

from typing import Any

import numpy as np
import torch

__all__ = ["DTYPES", "STORAGES", "Array", "Dtype", "storage", "tensor", "tensor_of_dtype"]

_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]

# torch.float32 and so on, by name.
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

# Names of the types of tensor memory in files of torch.save -> dtype. Quantized types are not supported.
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
    """Takes the place of ``numpy.dtype`` in a pickle; only the byte order is read from its state.

    NumPy does not check the state of a dtype, so a harmful file could make it read objects from any address.

    Attributes:
        plain: the dtype; None if it is not a dtype of numbers.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        plain = np.dtype(code) if isinstance(code, str) else None
        self.plain = plain if plain is not None and plain.kind in "biufc" else None

    def __setstate__(self, state: tuple) -> None:
        if self.plain is not None:
            self.plain = self.plain.newbyteorder(state[1])


class Array(np.ndarray):
    """Takes the place of ``numpy.ndarray`` in a pickle. It stays empty if the array in the file is not of numbers."""

    def __new__(cls, *_: Any) -> "Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        if dtype.plain is not None:
            super().__setstate__((version, shape, dtype.plain, is_fortran, data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)


def scalar(dtype: Dtype, data: Any) -> np.generic | None:
    """Return a NumPy scalar from its pickled form; None if it is not a number."""
    return None if dtype.plain is None else _SCALAR(dtype.plain, data)


def from_buffer(data: Any, dtype: Dtype, shape: tuple, order: str) -> np.ndarray | None:
    """Return an array from its pickled form of protocol 5; None if it is not an array of numbers."""
    return None if dtype.plain is None else _FROM_BUFFER(data, dtype.plain, shape, order)


def storage(data: bytearray) -> torch.Tensor:
    """Return a (N,) uint8 tensor whose memory is the N bytes."""
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def tensor(memory: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor | None:
    """Return a tensor as a view of a memory; torch checks that it lies inside. None if the memory was not read.

    Args:
        memory: (N,) tensor with all numbers of the memory; any other value means that the memory was not read.
        offset: index of the tensor's first number.
        size: shape of the tensor.
        stride: distance between neighbours in numbers, per dimension.
    """
    if not isinstance(memory, torch.Tensor):
        return None
    return memory.as_strided(tuple(size), tuple(stride), memory.storage_offset() + offset)


def tensor_of_dtype(memory: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> torch.Tensor | None:
    """Return a tensor whose type has no storage class of its own: its dtype is the third value of ``rest``."""
    if not isinstance(memory, torch.Tensor) or not isinstance(rest[2], torch.dtype):
        return None
    return tensor(memory.view(rest[2]), offset, size, stride)
