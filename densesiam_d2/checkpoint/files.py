"""Reading and writing weight files: nothing read here can run code, nothing written here can be half a file."""

import argparse
import codecs
import contextlib
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

__all__ = ["SAFETENSORS_KEY", "atomic_write", "read_checkpoint"]

# Under this key the header of a .safetensors, which holds strings only, has our metadata as JSON.
SAFETENSORS_KEY = "densesiam_d2"

_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]


class _Dtype:
    """Stands for ``numpy.dtype`` in a file: numbers only, and of its state the byte order only.

    NumPy believes what a file says about a dtype: objects then lie wherever the file says.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        self.plain = np.dtype(code)
        if self.plain.kind not in "biufc":
            raise pickle.UnpicklingError(f"it has arrays of {self.plain}, not of numbers")

    def __setstate__(self, state: tuple) -> None:
        self.plain = self.plain.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray`` in a file, and is one."""

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.plain, is_fortran, data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return _SCALAR(dtype.plain, data)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return _FROM_BUFFER(data, dtype.plain, shape, order)


# How NumPy's names in a file are understood. It moved its private modules in 2.0; files name either place.
_NUMPY = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}

# What a pickle of plain weights may name.
_ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # bytes in pickles of protocol 2
    **_NUMPY,
}

# Beyond tensors, in files of torch.save: MoCo and its relatives store their command line, ReSim stores NumPy arrays.
_SAFE_TORCH_GLOBALS = [argparse.Namespace, *((meaning, ".".join(name)) for name, meaning in _NUMPY.items())]


class _WeightsUnpickler(pickle.Unpickler):
    """Unpickler of dicts of NumPy arrays: any other global in the file is refused instead of called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain weights") from None


def read_checkpoint(path: str | Path) -> dict:
    """Read a weight file without running code from it.

    Args:
        path: a ``.pkl`` of NumPy arrays, a ``.safetensors``, or any file of ``torch.save`` whatever its suffix.

    Returns:
        The dict in the file, untouched; tensors are on the CPU. Of a ``.safetensors``: its tensors as "model" and, if
        ``save_safetensors`` wrote it, "metadata".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds more than weights and plain values, is damaged, or is no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = _read_pickle(path) if path.suffix == ".pkl" and not zipfile.is_zipfile(path) else None
        if not isinstance(content, dict):  # torch.save, also under a .pkl name (old torch: a pickle of a number first)
            with torch.serialization.safe_globals(_SAFE_TORCH_GLOBALS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"cannot read weights from {path}: {_reason(error)}") from error
    except Exception as error:  # readers of damaged bytes raise anything
        raise ValueError(f"cannot read weights from {path}: it is damaged ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read weights from {path}: it holds a {type(content).__name__}, not a dict")
    return content


def _reason(error: Exception) -> str:
    """Return one line: what the file has or asks for that is not allowed, else the error's first line."""
    arrays = re.search(r"it has arrays of .*, not of numbers", str(error))
    if arrays:
        return arrays[0]
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it asks for {forbidden[1]}, which is not plain weights"
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return "it is no file of torch.save"  # torch's own text advises to run whatever is in it
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _WeightsUnpickler(file, encoding="latin1").load()


def _read_safetensors(path: Path) -> dict[str, dict]:
    with safe_open(path, framework="pt") as file:
        content = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  it is no dict
        header = file.metadata() or {}
    if SAFETENSORS_KEY in header:
        content["metadata"] = json.loads(header[SAFETENSORS_KEY])
        if not isinstance(content["metadata"], dict):
            raise ValueError(f"{SAFETENSORS_KEY} in its header is no table of facts")
    return content


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete and on disk.

    Args:
        path: where the file is to appear; an existing file there is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a killed run left is written over
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)  # or a power cut could undo the renaming
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
