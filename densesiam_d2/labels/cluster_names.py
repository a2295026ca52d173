"""Names that a person gave to clusters: ``names.json``, and the classes that follow from it."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densesiam_d2.atomic import atomic_write
from densesiam_d2.labels import IGNORE

__all__ = ["IGNORE_NAME", "ClusterNames", "file_sha256", "majority_names"]

logger = logging.getLogger(__name__)

IGNORE_NAME = "ignore"  # clusters of this name, and without a name, are IGNORE in class maps


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ClusterNames:
    """The name of each cluster of one checkpoint.

    The file is JSON: "checkpoint_sha256", "num_clusters", and "names", a list with a string or null for each cluster.

    Attributes:
        names: name of each cluster; several may share a name, None is a cluster without a name.
        sha256: of the checkpoint file.
    """

    names: tuple[str | None, ...]
    sha256: str

    @property
    def classes(self) -> list[str]:
        """The different names without "ignore", sorted; the position in this list is the class id."""
        return sorted({name for name in self.names if name is not None and name != IGNORE_NAME})

    @property
    def table(self) -> np.ndarray:
        """The class id of each cluster, (K,) uint8; ``IGNORE`` for "ignore" and for clusters without a name."""
        ids = {name: i for i, name in enumerate(self.classes)}
        return np.array([ids.get(name, IGNORE) for name in self.names], np.uint8)

    def write(self, path: str | Path) -> None:
        """Write the file."""
        content = {"checkpoint_sha256": self.sha256, "num_clusters": len(self.names), "names": list(self.names)}
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())

    @classmethod
    def read(cls, path: str | Path, sha256: str, num_clusters: int) -> "ClusterNames":
        """Read the file, and check that its names are those of a checkpoint.

        White space around names is removed, an empty name is none, and "Ignore" in any case is "ignore". A warning
        names classes that differ by capitals only.

        Args:
            path: the file.
            sha256: of the checkpoint.
            num_clusters: of the checkpoint.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no names.json, is of another checkpoint or number of clusters, or names no class.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"the names {path} do not exist: save them from gallery.html")
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            names, its_sha256, its_number = content["names"], content["checkpoint_sha256"], content["num_clusters"]
            if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
                raise TypeError("'names' is no list of strings")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"  # the repr of a UnicodeDecodeError has the whole file
            raise ValueError(f"{path} is no names.json of a gallery ({reason}): save it from gallery.html") from None
        if its_sha256 != sha256:
            raise ValueError(
                f"{path} names the clusters of another checkpoint (sha256 {str(its_sha256)[:12]}..., this one has "
                f"{sha256[:12]}...): give the checkpoint that its gallery was made with, or name this one's clusters"
            )
        if len(names) != num_clusters or its_number != num_clusters:
            raise ValueError(
                f"{path} has {len(names)} names of {its_number} clusters, but the config has {num_clusters} clusters"
            )
        found = cls(tuple(map(_clean, names)), sha256)
        if not found.classes:
            raise ValueError(f"{path} names no class: give at least one cluster a name other than {IGNORE_NAME!r}")
        spellings = Counter(map(str.lower, found.classes))
        alike = [name for name in found.classes if spellings[name.lower()] > 1]
        if alike:
            logger.warning(
                "%s: classes that differ by capitals only: %s; write them alike to make them one", path, alike
            )
        if len(found.classes) > IGNORE:
            raise ValueError(f"{path} names {len(found.classes)} classes; an 8-bit class map holds {IGNORE} at most")
        return found


def _clean(name: str | None) -> str | None:
    name = " ".join((name or "").split())
    return IGNORE_NAME if name.lower() == IGNORE_NAME else name or None


def majority_names(counts: np.ndarray, classes: Sequence[str]) -> tuple[str | None, ...]:
    """Name each cluster by the class that most of its labelled pixels have.

    Args:
        counts: (C, K) pixels of each class in each cluster.
        classes: the C names.

    Returns:
        K names, None for a cluster without a labelled pixel.
    """
    best, some = counts.argmax(axis=0), counts.any(axis=0)
    return tuple(classes[c] if any_ else None for c, any_ in zip(best, some, strict=True))
