"""Reading and writing weight files: nothing read here can run code, nothing written here can be half a file."""

import argparse
import codecs
import contextlib
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

__all__ = ["atomic_write", "read_checkpoint"]

_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]

# What a pickle of plain weights may name. NumPy moved its private modules in 2.0; files name either place.
_ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # bytes in pickles of protocol 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}

# Beyond tensors, in files of torch.save: MoCo and its relatives store their command line, ReSim stores NumPy arrays.
_SAFE_TORCH_GLOBALS = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *{type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")},
]


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
        path: a ``.pkl`` of NumPy arrays, or any file of ``torch.save`` whatever its suffix.

    Returns:
        The dict in the file, untouched; tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds more than weights and plain values, is damaged, or is no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    try:
        content = _read_pickle(path) if path.suffix == ".pkl" and not zipfile.is_zipfile(path) else None
        if not isinstance(content, dict):  # torch.save, also under a .pkl name (old torch: a pickle of a number first)
            with torch.serialization.safe_globals(_SAFE_TORCH_GLOBALS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"cannot read weights from {path}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read weights from {path}: it holds a {type(content).__name__}, not a dict")
    return content


def _reason(error: Exception) -> str:
    """Return one line: which global the file asks for, where that is the problem, else the error's first line."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it asks for {forbidden[1]}, which is not plain weights"
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return "it is no file of torch.save"  # torch's own text advises to run whatever is in it
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _WeightsUnpickler(file, encoding="latin1").load()


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
