"""The names of very many images: packed in memory, or mapped from an index that all processes share.

An index is a folder: ``names.bin`` (all names, one behind the other), ``ends.bin`` (int64, where each ends) and
``index.json``, written last. Names are relative to a root. Images inside tar files have ``offsets.bin`` and
``sizes.bin`` as well (int64), and their names begin with that of the tar file.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from .image_io import IMAGE_SUFFIXES

__all__ = ["ImageFiles", "tar_members", "write_index"]

KIND = {"kind": "densesiam_d2 image index", "version": 1}


class ImageFiles(Dataset):
    """Records of "file_name" by number, without a Python object per image: 65 bytes an image, or none from an index.

    Attributes:
        root: the folder of an index's images, ending in a slash; "" without an index.
    """

    def __init__(self, names: Sequence[str]):
        """Pack the names in memory."""
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.root, self._parts, self._digest = "", None, None

    @classmethod
    def open(cls, index: str | Path) -> "ImageFiles":
        """Map an index that :func:`write_index` wrote; nothing but its few lines of json is read.

        Raises:
            FileNotFoundError: there is no index, or its images' folder is gone.
            ValueError: it is not whole, or nothing of this kind.
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
            tar = self.root + name[: name.index(".tar/") + 4]
            record["file_part"] = (tar, *(int(numbers[index]) for numbers in self._parts))
        return record

    def _name(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes()

    def digest(self) -> str:
        """Return a hash of all names below their common folder, so that the data may move."""
        if self._digest is None:
            first, last = (min(self._names()), max(self._names())) if len(self) else (b"", b"")
            common = os.path.commonprefix([first, last]).rpartition(b"/")[0]  # noqa: RUF071  cut at a folder
            digest = hashlib.sha256()
            for name in self._names():
                digest.update(name[len(common) :] + b"\0")
            self._digest = digest.hexdigest()
        return self._digest

    def _names(self) -> Iterator[bytes]:
        """Yield all names; those below a root as if it were "/"."""
        slash = b"/" if self.root else b""
        return (slash + self._name(i) for i in range(len(self)))


def _map(path: Path, dtype: type, count: int) -> np.ndarray:
    expected, size = count * np.dtype(dtype).itemsize, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} has {size:,} bytes instead of {expected:,}: make the index anew")
    return np.memmap(path, dtype, mode="r", shape=(count,)).view(np.ndarray)


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
        ValueError: there are none, or ``index`` is a folder of something else.
    """
    index = Path(index)
    if index.exists() and any(index.iterdir()) and not (index / "index.json").is_file():
        raise ValueError(f"{index} exists and is no index: name another folder")
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
    """Yield name and (offset, size) of each image in the tar files of a folder, sorted by file, in the order within.

    Args:
        root: a folder with ``*.tar``; compressed ones cannot be read from the middle.
        skipped: counts the other members by suffix, and the hidden ones.

    Raises:
        ValueError: a tar file is damaged or compressed.
    """
    for path in sorted(Path(root).rglob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    tar.members = []  # or it would keep them all
                    if not member.isreg():
                        continue
                    name = member.name.removeprefix("./")
                    suffix = Path(name).suffix.lower()
                    hidden = any(part.startswith(".") for part in name.split("/"))
                    if suffix in IMAGE_SUFFIXES and not hidden and not member.sparse:
                        yield f"{path.relative_to(root).as_posix()}/{name}", (member.offset_data, member.size)
                    else:
                        skipped["hidden" if hidden else suffix or "without ending"] += 1
        except tarfile.TarError as error:
            raise ValueError(f"{path} cannot be read as an uncompressed tar file: {error}") from error
