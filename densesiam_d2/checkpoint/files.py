"""Read weight files without running code from them."""

import json
import logging
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from densesiam_d2.checkpoint import arrays
from densesiam_d2.checkpoint.frameworks import refuse_jax, refuse_tensorflow
from densesiam_d2.checkpoint.tensors import tensors_in
from densesiam_d2.checkpoint.unpickling import InertUnpickler, Placeholder, read_pickles
from densesiam_d2.text_lines import listed

__all__ = ["SAFETENSORS_KEY", "read_checkpoint", "require_weight_file"]

logger = logging.getLogger(__name__)

# Key of our metadata in the header of a .safetensors. A header holds only strings, so the metadata is JSON.
SAFETENSORS_KEY = "densesiam_d2"

# Patterns for the first 512 bytes of files that are not weights, and what to do about each.
_NO_WEIGHTS = [
    (rb"\Z", "it is empty"),
    (
        rb"version https://git-lfs",
        "it is a git-lfs pointer, not weights ({start}): run git lfs pull where it comes from",
    ),
    (rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z][^\0]{6}", "it is a web page, not weights ({start}): download the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "it is a compressed file: unpack it"),
    (rb"(?s).{257}ustar", "it is a tar archive: unpack it"),
    (rb"\x93NUMPY", "it is an array of NumPy, not of PyTorch: save the network's state_dict() with torch.save"),
    (rb"\x89HDF", "it is a HDF5 file, not of PyTorch: save the network's state_dict() with torch.save"),
]


def require_weight_file(path: Path, what: str = "weight file") -> None:
    """Raise an error if there is no file, or a checkpoint of TensorFlow; ``what`` opens the message of the former.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, one of several parts, or a checkpoint of TensorFlow, whose name may be only the
            start of its files' names.
    """
    refuse_tensorflow(path)
    if path.is_dir() and (path / ".metadata").is_file():
        raise ValueError(
            f"cannot read weights from {path}: it is a sharded checkpoint; give the result of python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth"
        )
    if path.is_dir():
        raise ValueError(f"cannot read weights from {path}: it is a folder; give the file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} does not exist")
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.|\.index\.json$", path.name):  # names that Hugging Face gives
        raise ValueError(f"cannot read weights from {path}: it is of several parts; join them and save one state dict")


def read_checkpoint(path: str | Path, *, foreign: bool = False) -> dict:
    """Read a weight file without running code from it.

    Args:
        path: a pickle, a ``.safetensors``, or a file of ``torch.save`` with any suffix.
        foreign: whether the file may hold other objects than tensors and plain values, as checkpoints of other projects
            do. Their code never runs: they become :class:`Placeholder` objects, and the log names them.

    Returns:
        The dict in the file; tensors are on the CPU. For a ``.safetensors``: its tensors as "model" and, if
        ``save_safetensors`` wrote it, "metadata". For a foreign file that holds a whole module or a list instead of a
        dict: that object as "model".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of TensorFlow or JAX, or not a weight file; it holds no dict, or objects other
            than tensors and plain values; or a foreign file holds no tensors.
    """
    path = Path(path)
    require_weight_file(path)
    left_out: dict[str, None] = {}
    try:
        _check_start(path)
        content = _read(path, left_out)
        if foreign and isinstance(content, (Placeholder, list, tuple)):
            content = {"model": content}
        refuse_jax(content)
        shards = [name for name in left_out if name.endswith(("DTensor", "ShardedTensor"))]
        if shards:
            raise ValueError(f"it holds shards of tensors ({shards[0]}): save the full state dict")
        packed = [name for name in left_out if name.endswith(("_rebuild_qtensor", "_rebuild_sparse_tensor"))]
        if packed:
            raise ValueError(f"it holds quantized or sparse tensors ({packed[0]}): save dense floating-point weights")
        empty = foreign and not tensors_in(content)
    except Exception as error:  # damaged bytes can raise any exception
        raise ValueError(f"cannot read weights from {path}: {_reason(error, path)}") from error
    if left_out and not foreign:
        first = next(iter(left_out))
        raise ValueError(f"cannot read weights from {path}: it holds {first}, which is not plain weights")
    if empty:
        raise ValueError(f"cannot read weights from {path}: it holds no tensors")
    if not isinstance(content, dict):
        raise ValueError(f"cannot read weights from {path}: it holds a {type(content).__name__}, not a dict")
    if left_out:
        logger.info("%s: left out objects that are no tensors: %s", path, listed(left_out))
    return content


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    for pattern, message in _NO_WEIGHTS:
        if re.match(pattern, start):
            raise ValueError(message.format(start=_shown(start)))


def _shown(start: bytes) -> str:
    return f"it starts with {start[:40].decode('ascii', 'replace').strip()!r}"


def _read(path: Path, left_out: dict[str, None]) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        return _read_zip(path, left_out)
    with path.open("rb") as file:
        return read_pickles(file, path.stat().st_size, left_out)


def _read_zip(path: Path, left_out: dict[str, None]) -> Any:
    """Read a zip archive of torch.save (torch 1.6 and later): one pickle, and one file for each tensor's memory."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if any(re.fullmatch(r"([^/]+/)?constants\.pkl", name) for name in names):
            raise ValueError("it is a TorchScript archive, which holds code: save its state_dict() and give that")
        if len(pickles) != 1:
            if names and all(name.endswith(".npy") for name in names):
                raise ValueError("it holds arrays of NumPy: save {name: torch.from_numpy(array), ...} with torch.save")
            raise ValueError("it is a zip archive, but not of torch.save: give the file in it")
        root = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
        storages: dict[str, torch.Tensor] = {}

        def find_storage(dtype: Any, key: str, *_: Any) -> Any:
            if not isinstance(dtype, torch.dtype):
                return Placeholder()
            if key not in storages:
                storages[key] = arrays.storage(bytearray(archive.read(f"{root}data/{key}")))
                if order != sys.byteorder:
                    storages[key].untyped_storage().byteswap(dtype)
            return storages[key].view(dtype)

        with archive.open(pickles[0]) as file:
            return InertUnpickler(file, left_out, find_storage).load()


def _reason(error: Exception, path: Path) -> str:
    """Return one line that says why a file cannot be read."""
    with path.open("rb") as file:
        start = file.read(512)
    text = (str(error).strip().splitlines() or [""])[0]
    if start[:4] == b"PK\3\4" and not zipfile.is_zipfile(path):
        return "it is cut off: copy or download it again"
    if path.suffix == ".safetensors" and start[:4] == b"PK\3\4":
        return "it is a file of torch.save: let its name end in .pth"
    if path.suffix != ".safetensors" and start[7:9] == b"\0{":  # the end of a number, and JSON
        return "it is a file of safetensors: let its name end in .safetensors"
    if isinstance(error, zipfile.BadZipFile):
        return f"it is damaged: copy or download it again ({text})"
    is_text = start.isascii() and path.suffix != ".safetensors" and not isinstance(error, ValueError)
    if is_text or text.startswith(("invalid load key", "unregistered extension code")):
        return f"it is no file of torch.save, pickle or safetensors ({_shown(start)})"
    signs = ("truncated", "ran out of input")
    signs += ("incomplete metadata", "header too small", "invalid header length")  # of safetensors
    if isinstance(error, EOFError) or any(sign in text.lower() for sign in signs):
        return f"it is cut off: copy or download it again ({text})"
    if isinstance(error, (pickle.UnpicklingError, SafetensorError, OSError, ValueError)) and text:
        return text
    return f"it is damaged ({type(error).__name__})"


def _read_safetensors(path: Path) -> dict[str, dict]:
    with safe_open(path, framework="pt") as file:
        content = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  file is not a dict
        header = file.metadata() or {}
    if SAFETENSORS_KEY in header:
        content["metadata"] = json.loads(header[SAFETENSORS_KEY])
        if not isinstance(content["metadata"], dict):
            raise ValueError(f"{SAFETENSORS_KEY} in its header is no table of facts")
    return content
