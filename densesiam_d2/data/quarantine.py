"""Unreadable files are recorded in a file, and too many of them stop the run."""

import json
import logging
import os
from collections import deque
from pathlib import Path
from typing import TextIO

from detectron2.utils import comm

from densesiam_d2.image_io import UnreadableImageError
from densesiam_d2.text_lines import printable, read_json_lines

__all__ = ["Quarantine", "read_quarantine"]

WINDOW = 1000  # most recent reads, of which the share of unreadable files is taken
MIN_READS = 100  # reads before the share is checked


class Quarantine:
    """Write ``quarantine.jsonl``: one line for each unreadable file, with its path, the reason and the process's rank.

    All processes write to the same file. After a resume, files that it has already are not written again.
    """

    def __init__(self, path: Path, *, max_share: float):
        """Read the entries of an earlier part of the run.

        Args:
            path: of ``quarantine.jsonl``.
            max_share: the largest allowed share of unreadable files among the recent reads of a process.
        """
        self._path, self._max_share = path, max_share
        self._known = {entry["file_name"] for entry in read_quarantine(path)}
        self._recent = deque(maxlen=WINDOW)

    def add(self, num_read: int, unreadable: list[tuple[str, str]]) -> None:
        """Record the unreadable files of one batch.

        Args:
            num_read: number of images of the batch, including substitutes.
            unreadable: (file, reason) of the files that were replaced.

        Raises:
            UnreadableImageError: too many of the recent files were unreadable; the message lists some.
        """
        self._recent.extend([None] * num_read + [printable(f"{file}: {reason}") for file, reason in unreadable])
        for file, reason in unreadable:
            if file not in self._known:
                self._known.add(file)
                self._write(file, reason)
        bad = [entry for entry in self._recent if entry] if unreadable else []
        if len(self._recent) >= MIN_READS and len(bad) > self._max_share * len(self._recent):
            raise UnreadableImageError(
                f"{len(bad)} of the last {len(self._recent)} images cannot be read, more than the share "
                f"RUN.MAX_UNREADABLE {self._max_share}: check the files in {self._path}. The last ones:\n  "
                + "\n  ".join(bad[-5:])
            )

    def _write(self, file: str, reason: str) -> None:
        logger = logging.getLogger(__name__)
        logger.warning("unreadable image no. %d, another one is taken: %s", len(self._known), printable(reason))
        line = json.dumps({"file_name": file, "reason": reason, "rank": comm.get_rank()}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+") as out:
                if self._ends_within_a_line(out):
                    line = "\n" + line
                out.write(line)  # in one write, so lines of several processes do not mix
        except OSError as error:
            logger.warning("cannot write %s: %s", self._path, error)

    @staticmethod
    def _ends_within_a_line(file: TextIO) -> bool:
        """Tell whether the file ends in an unfinished line, as a killed run may leave."""
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        return file.read(1) not in ("", "\n")


def read_quarantine(path: Path, problems: list[str] | None = None) -> list[dict]:
    """Return the entries of ``quarantine.jsonl``, with "file_name", "reason" and "rank"; [] if there is no such file.

    An unfinished line, as a killed or a writing run leaves it, is left out; ``problems`` is that of
    :func:`read_json_lines`.
    """
    return [entry for entry in read_json_lines(path, problems) if "file_name" in entry]
