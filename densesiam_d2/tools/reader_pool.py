"""Read many image files in worker processes that may die or hang without losing the rest."""

import contextlib
import hashlib
import io
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait

from PIL import Image

from densesiam_d2.data.image_io import (
    DECODING_ERRORS,
    UnreadableImageError,
    highest_16_bit_value,
    read_bytes,
    read_image,
)
from densesiam_d2.processes import end_with_parent

__all__ = ["CheckedImage", "check_images"]


@dataclass
class CheckedImage:
    """What reading a file has shown; None where unknown."""

    path: str
    error: str | None = None
    size: tuple[int, int] | None = None  # width, height
    kind: str | None = None  # such as "JPEG RGB"
    highest: int | None = None  # value, of a 16-bit image
    checksum: tuple[int, str] | None = None  # bytes, SHA-256


def check_images(
    records: Iterable[dict], workers: int, timeout: float = 60, with_checksums: bool = False
) -> Iterator[CheckedImage]:
    """Read files in worker processes, and yield the results as they come.

    A file that kills its worker, or is not read in time, is reported like any other, and the rest goes on.

    Args:
        records: dicts with "file_name", and "file_part" for images in tar files.
        workers: number of processes.
        timeout: seconds for one file.
        with_checksums: whether to find the checksums too.
    """
    records = iter(records)
    idle, busy = [_Worker(with_checksums) for _ in range(workers)], []
    try:
        while True:
            while idle and (record := next(records, None)) is not None:
                busy.append(idle.pop())
                busy[-1].give(record)
            if not busy:
                return
            wait([worker.pipe for worker in busy], min(timeout, 1))
            for worker in busy.copy():
                result = worker.take(timeout)
                if result is not None:
                    busy.remove(worker)
                    idle.append(worker)
                    yield result
    finally:
        for worker in idle + busy:
            worker.process.kill()


class _Worker:
    """A process that reads one file at a time, and is replaced when it dies or takes too long."""

    def __init__(self, with_checksums: bool):
        self._with_checksums = with_checksums
        self._start_process()

    def _start_process(self) -> None:
        self.pipe, other_end = Pipe()
        self.process = Process(target=_work, args=(other_end, self._with_checksums), daemon=True)
        self.process.start()
        other_end.close()  # or the pipe would outlive the process

    def give(self, record: dict) -> None:
        if not self.process.is_alive():
            self._start_process()
        self._path, self._since = record["file_name"], time.monotonic()
        self.pipe.send(record)

    def take(self, timeout: float) -> CheckedImage | None:
        """Return the result, or None if there is none yet."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            reason = "it kills the process that reads it, or memory has run out"
        else:
            if time.monotonic() - self._since < timeout:
                return None
            reason = f"it takes more than {timeout:g} s"
        self.process.kill()
        self._start_process()
        return CheckedImage(self._path, error=f"cannot read {self._path}: {reason}")


def _work(pipe: Connection, with_checksums: bool) -> None:
    """Read the files that come through a pipe, in a process of its own."""
    warnings.simplefilter("ignore")  # Pillow's do not name the file
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    end_with_parent()
    while True:
        pipe.send(_check_file(pipe.recv(), with_checksums))


def _check_file(record: dict, with_checksum: bool) -> CheckedImage:
    path, part = record["file_name"], record.get("file_part")
    result = CheckedImage(path)
    try:
        height, width, _ = read_image(path, part).shape
        result.size = width, height
    except (UnreadableImageError, FileNotFoundError) as error:
        result.error = str(error)
    except Exception as error:  # training would stop at it too, but here the other files matter
        result.error = f"cannot read {path}: {type(error).__name__}: {error}"
    with contextlib.suppress(OSError, *DECODING_ERRORS):
        data = read_bytes(path, part)
        if with_checksum:  # of damaged images too
            result.checksum = len(data), hashlib.sha256(data).hexdigest()
        if result.error is None:
            with Image.open(io.BytesIO(data)) as image:
                result.kind = f"{image.format} {image.mode}"
            result.highest = highest_16_bit_value(data)
    return result
