"""Read many image files in worker processes; a file that kills or blocks its worker does not stop the others."""

import contextlib
import functools
import hashlib
import io
import itertools
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from PIL import Image

from densesiam_d2.image_io import (
    DECODING_ERRORS,
    UnreadableImageError,
    has_more_pages,
    highest_16_bit_value,
    read_bytes,
    read_image,
)
from densesiam_d2.processes import end_with_parent

__all__ = ["CheckedImage", "check_images", "in_workers"]

BATCH = 100  # files per worker that wait in the pool at a time


@dataclass
class CheckedImage:
    """What is known of a file after reading it; None where unknown."""

    path: str
    error: str | None = None
    size: tuple[int, int] | None = None  # width, height
    kind: str | None = None  # such as "JPEG RGB", "TIFF L of several pages"
    highest: int | None = None  # value, of a 16-bit image
    checksum: tuple[int, str] | None = None  # bytes, SHA-256


def check_images(
    records: Iterable[dict], workers: int, timeout: float = 60, with_checksums: bool = False
) -> Iterator[CheckedImage]:
    """Read images in worker processes, and yield the results in the order of the records.

    Args:
        records: dicts with "file_name", and "file_part" for images in tar files.
        workers: number of processes.
        timeout: seconds for one file.
        with_checksums: whether to compute the checksums too.
    """
    check = functools.partial(_check_file, with_checksum=with_checksums)
    return in_workers(check, records, workers, timeout, lambda path, error: CheckedImage(path, error=error))


def in_workers(
    work: Callable[[dict], Any],
    records: Iterable[dict],
    workers: int,
    timeout: float,
    failed: Callable[[str, str], Any],
) -> Iterator[Any]:
    """Call ``work`` for each record in worker processes, and yield the results in the order of the records.

    A file that kills its worker, or is not finished in time, is reported like any other unreadable file.

    Args:
        work: function of one record, which can be pickled.
        records: dicts with "file_name", and whatever else ``work`` needs.
        workers: number of processes.
        timeout: seconds for one file.
        failed: makes the result of such a file from its path and a line that says why.
    """
    in_time = functools.partial(_in_time, work=work, timeout=timeout)
    records, batch, pool = iter(records), [], _start_pool(workers)
    try:
        while batch := batch or list(itertools.islice(records, BATCH * workers)):
            done = 0
            try:
                for result in pool.map(in_time, batch, chunksize=4):
                    yield result
                    done += 1
            except BrokenProcessPool:  # a file killed its worker: one of the next files, but which is not known
                suspects = batch[done : done + 4 * workers]
                yield from _one_by_one(in_time, suspects, timeout, failed)
                done += len(suspects)
                pool = _start_pool(workers)
            batch = batch[done:]
    finally:
        pool.shutdown(cancel_futures=True)


def _one_by_one(in_time: Callable, records: Sequence[dict], timeout: float, failed: Callable) -> Iterator[Any]:
    """Read one file at a time, to find the one that kills its worker."""
    pool = _start_pool(1)
    for record in records:
        start, path = time.monotonic(), record["file_name"]
        try:
            result = pool.submit(in_time, record).result()
        except BrokenProcessPool:
            reason = "it kills the process that reads it, or memory has run out"
            if time.monotonic() - start >= timeout:
                reason = f"it takes more than {timeout:g} s"
            result = failed(path, f"cannot read {path}: {reason}")
            pool = _start_pool(1)
        yield result
    pool.shutdown()


def _start_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_prepare_worker)


def _prepare_worker() -> None:
    warnings.simplefilter("ignore")  # Pillow's warnings do not name the file
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and without a traceback
    end_with_parent()


def _in_time(record: dict, work: Callable[[dict], Any], timeout: float) -> Any:
    """Work on a file in a worker process; the alarm kills the process, because nothing else interrupts a decoder."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return work(record)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _check_file(record: dict, with_checksum: bool) -> CheckedImage:
    path, part = record["file_name"], record.get("file_part")
    result = CheckedImage(path)
    try:
        height, width, _ = read_image(path, part).shape
        result.size = width, height
    except (UnreadableImageError, FileNotFoundError) as error:
        result.error = str(error)
    except Exception as error:  # training would stop, but here the other files are checked too
        result.error = f"cannot read {path}: {type(error).__name__}: {error}"
    with contextlib.suppress(OSError, *DECODING_ERRORS):
        data = read_bytes(path, part)
        if with_checksum:  # of damaged images too
            result.checksum = len(data), hashlib.sha256(data).hexdigest()
        if result.error is None:
            with Image.open(io.BytesIO(data)) as image:
                result.kind = f"{image.format} {image.mode}{' of several pages' * has_more_pages(image)}"
            result.highest = highest_16_bit_value(data)
    return result
