"""The names of very many images: packed in memory, or memory-mapped from an index that all processes share.

An index is a folder with ``names.bin`` (all names, without separators), ``ends.bin`` (int64, the byte position at which
each name ends) and ``index.json``, which is written last. Names are relative to a root. An index of images inside tar
files also has ``offsets.bin`` and ``sizes.bin`` (int64), and each name begins with the name of its tar file.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from densesiam_d2.image_io import IMAGE_SUFFIXES

from .file_walk import walk_files

__all__ = ["TAR_SUFFIXES", "ImageFiles", "require_index_or_nothing", "tar_members", "write_index"]

TAR_SUFFIXES = (".tar",)
KIND = {"kind": "densesiam_d2 image index", "version": 1}
_FILES = {"index.json", "names.bin", "ends.bin", "offsets.bin", "sizes.bin"}
_FACTS = {"root": str, "images": int, "bytes": int, "tar": bool}


class ImageFiles(Dataset):
    """A dataset of records with "file_name". It needs 65 bytes of memory per image, or none with an index.

    There is no Python object per image.

    Attributes:
        root: the folder of the images of an index, with a slash at its end; "" without an index.
    """

    def __init__(self, names: Sequence[str]):
        """Pack the names in memory."""
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.root, self._parts, self._digest = "", None, None

    @classmethod
    def open(cls, index: str | Path) -> "ImageFiles":
        """Open an index that :func:`write_index` wrote: read ``index.json``, and memory-map the other files.

        Raises:
            FileNotFoundError: there is no index, or the folder of its images does not exist.
            ValueError: the index is incomplete, or ``index`` is not an index of images.
        """
        index = Path(index)
        try:
            facts = json.loads((index / "index.json").read_text())
        except NotADirectoryError:
            raise ValueError(f"{index} is no folder, so no index of images") from None
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{index} has no index.json: make it by python -m densesiam_d2.tools.index FOLDER --output {index}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{index / 'index.json'} is not json: {error}") from None
        if not isinstance(facts, dict) or {key: facts.get(key) for key in KIND} != KIND:
            raise ValueError(f"{index} is no index of images of version {KIND['version']}")
        wrong = [key for key, kind in _FACTS.items() if not isinstance(facts.get(key), kind)]
        if wrong:
            raise ValueError(f"{index / 'index.json'} has no valid {', '.join(wrong)}: make the index anew")
        root = (index / facts["root"]).resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"{index} is of images in {root}, which does not exist")
        return cls._mapped(index, root, facts)

    @classmethod
    def _mapped(cls, index: Path, root: Path, facts: dict) -> "ImageFiles":
        files, count = cls.__new__(cls), facts["images"]
        files._bytes = _map(index / "names.bin", np.uint8, facts["bytes"])
        files._ends = _map(index / "ends.bin", np.int64, count)
        files.root, files._digest, files._parts = os.path.join(root, ""), facts.get("sha256"), None  # noqa: PTH118
        if facts["tar"]:
            files._parts = (_map(index / "offsets.bin", np.int64, count), _map(index / "sizes.bin", np.int64, count))
        return files

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:
        """Return "file_name", and for an image in a tar file "file_part": (tar file, offset, size), in bytes."""
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        name = os.fsdecode(self._name(index))
        if not self.root:
            return {"file_name": name}
        if ".." in name.split("/"):
            raise ValueError(f"the index of {self.root} names {name}, which lies elsewhere")
        record = {"file_name": self.root + name}
        if self._parts:
            record["file_part"] = (self._tar_of(name), *(int(numbers[index]) for numbers in self._parts))
        return record

    def _tar_of(self, name: str) -> str:
        paths = (self.root + name[: found.end() - 1] for found in re.finditer(r"\.tar/", name, re.IGNORECASE))
        return next(path for path in paths if not _is_folder(path))  # folders may end in .tar too

    def _name(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes()

    def digest(self) -> str:
        """Return a hash of all names relative to their common folder: moving the data does not change it."""
        if self._digest is None:
            first, last = (min(self._names()), max(self._names())) if len(self) else (b"", b"")
            common = os.path.commonprefix([first, last]).rpartition(b"/")[0]  # noqa: RUF071  cut at a folder
            digest = hashlib.sha256()
            for name in self._names():
                digest.update(name[len(common) :] + b"\0")
            self._digest = digest.hexdigest()
        return self._digest

    def _names(self) -> Iterator[bytes]:
        """Yield all names; the names of an index begin with "/" in place of the root."""
        slash = b"/" if self.root else b""
        return (slash + self._name(i) for i in range(len(self)))


@functools.cache
def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def _map(path: Path, dtype: type, count: int) -> np.ndarray:
    expected, size = count * np.dtype(dtype).itemsize, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} has {size:,} bytes instead of {expected:,}: make the index anew")
    return np.memmap(path, dtype, mode="r", shape=(count,)).view(np.ndarray)


def require_index_or_nothing(folder: Path) -> None:
    """Raise ValueError if a folder that :func:`write_index` would replace holds anything but an index of ours."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    try:
        kind = json.loads((folder / "index.json").read_text())["kind"] if names else KIND["kind"]
    except (OSError, ValueError, LookupError, TypeError):
        kind = None
    if kind != KIND["kind"] or not names <= _FILES:
        raise ValueError(f"{folder} exists and is no index: name another folder")


def write_index(index: str | Path, root: str | Path, images: Iterable, *, tar: bool = False) -> int:
    """Write an index, in constant memory.

    Args:
        index: the folder to write; an existing index there is replaced.
        root: the folder of the images.
        images: the images' names below ``root``, sorted; with ``tar`` what :func:`tar_members` yields.
        tar: whether the images are inside tar files.

    Returns:
        The number of images.

    Raises:
        ValueError: there are no images, or ``index`` is a folder with other content.
    """
    index = Path(index)
    require_index_or_nothing(index)
    partial = index.with_name(f".{index.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    count = end = 0
    kinds = ["names", "ends", *(["offsets", "sizes"] if tar else [])]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context((partial / f"{kind}.bin").open("wb")) for kind in kinds]
        for image in images:
            name, numbers = image if tar else (image, ())
            encoded = os.fsencode(name)
            end += len(encoded)
            count += 1
            streams[0].write(encoded)
            for stream, number in zip(streams[1:], (end, *numbers), strict=True):
                stream.write(number.to_bytes(8, "little"))
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
    if not count:
        shutil.rmtree(partial)
        raise ValueError(f"{root} holds no images to make an index of")
    facts = {**KIND, "images": count, "bytes": end, "tar": tar}
    facts["sha256"] = ImageFiles._mapped(partial, root, facts).digest()
    facts["root"] = os.path.relpath(Path(root).resolve(), index.resolve())
    (partial / "index.json").write_text(json.dumps(facts, indent=1) + "\n")
    if index.exists():
        shutil.rmtree(index)
    partial.rename(index)
    return count


def tar_members(root: str | Path, skipped: Counter) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and (offset, size) of each image in the tar files of a folder.

    The tar files are sorted by path; their members keep the order that they have in the file.

    Args:
        root: a folder with ``*.tar``. Compressed files are refused, because they cannot be read from the middle.
        skipped: counts the members that are no images by suffix, the hidden ones, and links, which have no bytes; and
            the other files of the folder.

    Raises:
        ValueError: a tar file is damaged or compressed, or is several ones that were joined as they are.
    """
    below = len(os.path.join(root, ""))  # noqa: PTH118
    for path in walk_files(Path(root), TAR_SUFFIXES, skipped):
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    tar.members = []  # otherwise tarfile keeps all members in memory
                    name = member.name.removeprefix("./")
                    suffix = Path(name).suffix.lower()
                    hidden = any(part.startswith(".") for part in name.split("/"))
                    if member.isreg() and suffix in IMAGE_SUFFIXES and not hidden and not member.sparse:
                        yield f"{path[below:]}/{name}", (member.offset_data, member.size)
                    elif not member.isdir():
                        link = member.issym() or member.islnk()
                        skipped["hidden" if hidden else "links" if link else suffix or "without ending"] += 1
                _check_end(tar)
        except tarfile.TarError as error:
            raise ValueError(f"{path} cannot be read as an uncompressed tar file: {error}") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that only zeros follow the last member, because tarfile takes a damaged header for the end.

    Raises:
        tarfile.ReadError: there is more.
    """
    tar.fileobj.seek(tar.offset)
    while block := tar.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                f"more data after the end of the archive at byte {tar.offset:,}: the header there is damaged, or tar "
                "files were joined by cat; write it again, or keep them as files of their own"
            )
