"""Labels of one epoch in a memory-mapped file per process, written batch by batch.

Shape shorthand: n positions of this process, L labels per point (views times clusterings), h,w cells.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm

from densesiam_d2.atomic import atomic_write

__all__ = ["LabelFile"]


class LabelFile:
    """``labels-EPOCH-RANKofSIZE.npy`` (n, L, h, w), and a ``.json`` that says how many batches are in it, of which run.

    Each process has a file of its own, because on network disks two machines must not write parts of one file.
    """

    def __init__(self, folder: Path, epoch: int, fingerprint: str, *, save_seconds: float = 60.0):
        """Store the names; nothing is read or written.

        Args:
            folder: of the files.
            epoch: number of the epoch.
            fingerprint: what the labels must belong to; a file with another one counts as empty.
            save_seconds: between two saves of the number of batches.
        """
        stem = f"labels-{epoch:04d}-{comm.get_rank()}of{comm.get_world_size()}"
        self._labels, self._state = folder / f"{stem}.npy", folder / f"{stem}.json"
        self._fingerprint, self._save_seconds, self._saved = fingerprint, save_seconds, time.monotonic()
        self._open: np.ndarray | None = None

    def num_batches(self, total: int) -> int:
        """Return how many batches are safely in the file.

        It must have been made for ``total`` batches, or be complete with more of them; otherwise it counts as empty.
        """
        if not (self._labels.is_file() and self._state.is_file()):
            return 0
        state = json.loads(self._state.read_text())
        made_for = state.get("total", 0)
        fits = made_for == total or state["batches"] == made_for > total
        return state["batches"] if fits and state["fingerprint"] == self._fingerprint else 0

    def write(self, index: int, labels: torch.Tensor, *, num_batches: int, num_clusters: int) -> None:
        """Write the labels (N, L, h, w), below ``num_clusters``, of batch ``index``; the batches come in order.

        Raises:
            OSError: the disk has no room for the whole file.
        """
        if self._open is None and index:
            self._open = np.lib.format.open_memmap(self._labels, mode="r+")
        elif self._open is None:
            self._labels.parent.mkdir(parents=True, exist_ok=True)
            kind = np.uint8 if num_clusters <= 256 else np.int32
            self._open = np.lib.format.open_memmap(
                self._labels, mode="w+", dtype=kind, shape=(num_batches * len(labels), *labels.shape[1:])
            )
            with self._labels.open("r+b") as file:  # a full disk is an error here; later it would kill the process
                os.posix_fallocate(file.fileno(), 0, self._open.offset + self._open.nbytes)
        self._open[index * len(labels) : (index + 1) * len(labels)] = labels.cpu().numpy()
        if index + 1 == num_batches or time.monotonic() - self._saved > self._save_seconds:
            self._open.flush()
            with atomic_write(self._state) as file:
                state = {"fingerprint": self._fingerprint, "total": num_batches, "batches": index + 1}
                file.write(json.dumps(state).encode())
            self._saved = time.monotonic()

    def read(self) -> np.ndarray:
        """Return the labels (n, L, h, w), mapped from the file."""
        return np.load(self._labels, mmap_mode="r")

    @staticmethod
    def remove_before(folder: Path, epoch: int) -> None:
        """Delete this process's files of all epochs before one."""
        for path in folder.glob(f"labels-*-{comm.get_rank()}of{comm.get_world_size()}.*"):
            if int(path.name.split("-")[1]) < epoch:
                path.unlink()
