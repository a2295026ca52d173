"""Read pickles without running code from them. Objects that are not tensors or plain values become placeholders.

A pickle names functions and classes, and the arguments to call them with. This reader never imports such a name: the
few names in :data:`_ALLOWED` call functions of this package, and every other name becomes a :class:`Placeholder`.
"""

import functools
import io
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from densesiam_d2.checkpoint import arrays

__all__ = ["InertUnpickler", "Placeholder", "read_pickles"]

# The first pickles in a file of torch.save before torch 1.6 (torch/serialization.py).
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_PYTHON_2 = {"__builtin__": "builtins"}


class Placeholder:
    """Takes the place of an object whose class is not imported. It keeps the object's data and does nothing.

    Attributes:
        arguments: the arguments that the file has for the class.
        state: the attributes that the file sets on the object.
        content: the items that the file sets by key.
    """

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments
        self.state = None
        self.content = {}

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        self = super().__new__(cls)
        Placeholder.__init__(self)  # a pickle may skip __init__
        return self

    def __call__(self, *_: Any, **__: Any) -> "Placeholder":
        return Placeholder()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content[key] = value

    def append(self, _: Any) -> None:
        """Ignore an item that the file adds to a list."""

    extend = add = append


class _Allowed:
    """A function of this package that a file may call. It has no attributes, so the file cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        result = self._function(*arguments)
        return Placeholder() if result is None else result

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


def _latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin1")  # pickles of protocol 2 store bytes this way


def _bytearray(content: bytes | str = b"", *_: Any) -> bytearray:
    return bytearray(content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content)))


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(build: Any, _: Any, arguments: tuple, *__: Any) -> Any:
    return build(*arguments) if isinstance(build, _Allowed) else None


# The names that a file may use. NumPy 2.0 renamed its private modules, so both names of each are listed.
_ALLOWED = {
    name: _Allowed(function)
    for name, function in {
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": Counter,
        "collections.defaultdict": lambda *_: {},
        "builtins.set": set,
        "builtins.frozenset": frozenset,
        "builtins.bytearray": _bytearray,
        "builtins.complex": complex,
        "_codecs.encode": _latin1,
        "numpy.ndarray": arrays.Array,
        **{f"numpy.{core}.multiarray._reconstruct": arrays.Array for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": arrays.scalar for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": arrays.from_buffer for core in ("core", "_core")},
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch._utils._rebuild_tensor": arrays.tensor,
        "torch._utils._rebuild_tensor_v2": arrays.tensor,
        "torch._utils._rebuild_tensor_v3": arrays.tensor_of_dtype,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type_v2": _of_type,
    }.items()
}


class InertUnpickler(pickle.Unpickler):
    """Unpickler that calls only functions of this package.

    Args:
        file: the file to read.
        left_out: receives the name of each object that is not a tensor or a plain value.
        find_storage: function of dtype (or a placeholder), key, number of elements and further values that returns the
            memory of a tensor.
    """

    def __init__(self, file: BinaryIO, left_out: dict[str, None], find_storage: Callable | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._left_out = left_out
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        path = f"{_PYTHON_2.get(module, module)}.{name}"
        if path in _ALLOWED:
            return _ALLOWED[path]
        if path == "numpy.dtype":
            return _Allowed(self._numpy_dtype)
        if path == "torch.storage._load_from_bytes":
            return _Allowed(self._storage_in_bytes)
        if module == "torch" and name in arrays.DTYPES:
            return arrays.DTYPES[name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in arrays.STORAGES:
            return arrays.STORAGES[name]
        self._left_out[path] = None
        return Placeholder

    def persistent_load(self, saved_id: Any) -> Any:
        if isinstance(saved_id, tuple) and saved_id[0] == "module":  # a class and its source code
            return saved_id[1]
        if self._find_storage is None or not isinstance(saved_id, tuple) or saved_id[0] != "storage":
            raise pickle.UnpicklingError("it refers to something outside of itself")
        _, dtype, key, _, *rest = saved_id
        return self._find_storage(dtype, key, *rest)

    def _numpy_dtype(self, code: Any, *_: Any) -> arrays.Dtype:
        dtype = arrays.Dtype(code)
        if dtype.plain is None:
            self._left_out["arrays of other things than numbers"] = None
        return dtype

    def _storage_in_bytes(self, data: bytes) -> Any:
        """Return the memory of a tensor that was pickled directly, without torch.save."""
        return read_pickles(io.BytesIO(data), len(data), self._left_out)


def read_pickles(file: BinaryIO, size: int, left_out: dict[str, None]) -> Any:
    """Read one pickle, or the series of pickles that torch.save wrote before torch 1.6.

    Args:
        file: open file, positioned at the first pickle.
        size: size of the file in bytes.
        left_out: receives the name of each object that is not a tensor or a plain value.

    Returns:
        The content, with placeholders.

    Raises:
        Exception: the bytes are damaged; the exception can be of any type.
    """
    first = InertUnpickler(file, left_out).load()
    if not isinstance(first, int) or first != _MAGIC:
        return first
    if InertUnpickler(file, left_out).load() != _PROTOCOL:
        raise pickle.UnpicklingError("it is of an unknown version of torch.save")
    InertUnpickler(file, left_out).load()  # sizes of C types on the machine that wrote the file
    storages: dict[str, torch.Tensor] = {}
    find_storage = functools.partial(_reserve, storages, size)
    content = InertUnpickler(file, left_out, find_storage).load()
    for key in InertUnpickler(file, left_out).load():
        memory = storages[key]
        (elements,) = struct.unpack("<q", file.read(8))
        if elements != len(memory):
            raise pickle.UnpicklingError("its parts contradict each other")
        wanted = memory.view(torch.uint8)
        if len(wanted) and file.readinto(wanted.numpy()) != len(wanted):
            raise EOFError("it ends too early")
    return content


def _reserve(
    storages: dict[str, torch.Tensor], size: int, dtype: Any, key: str, elements: int, view: tuple | None = None
) -> torch.Tensor:
    """Return the memory of a key, still without its numbers, which follow after the pickles in the file."""
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("it has tensors of quantized numbers")
    if not 0 <= elements * dtype.itemsize <= size:
        raise EOFError("it ends too early")
    if key not in storages:
        storages[key] = torch.empty(elements, dtype=dtype)
    if view is None:
        return storages[key]
    _, start, length = view
    return storages[key][start : start + length]
