"""Check that the records of a dataset name only local files below the dataset's own folders."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["check_record_paths"]

_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


def check_record_paths(records: Sequence[dict], roots: Iterable[str | Path] = ()) -> None:
    """Check that the files of a dataset are local and below its folders, because annotations can name any file.

    Only names are compared; the disk is not read. So ``root/../x`` is outside. A symbolic link below a root may lead
    anywhere, because the owner of the folder has put it there on purpose.

    Args:
        records: dicts of detectron2's dataset format; paths of images, label maps and panoptic maps are checked.
        roots: folders of the dataset; "" is the current folder. If there are none, files may lie anywhere on this
            machine.

    Raises:
        ValueError: a name is an address (``http://...``), or lies outside all roots.
    """
    names = [str(record[key]) for key in _KEYS for record in records if record.get(key)]
    remote = [name for name in names if "://" in name]
    if remote:
        raise ValueError(
            f"{len(remote)} of {len(names)} files of a dataset of {len(records)} records are addresses, first "
            f"{remote[0]}: copy them to this machine and name them by their paths"
        )
    roots = [os.path.join(root or ".", "") for root in roots]  # noqa: PTH118  with a slash at the end
    if not roots:
        return
    # Normalising a million paths takes seconds, so paths that begin with a root and have no ".." are accepted first.
    plainly_below = re.compile(rf"(?:{'|'.join(map(re.escape, roots))})(?!.*\.\.)", re.DOTALL).match
    outside = [name for name in names if not plainly_below(name)]
    normalised = tuple(os.path.join(os.path.abspath(root), "") for root in roots)  # noqa: PTH100, PTH118
    outside = [name for name in outside if not os.path.abspath(name).startswith(normalised)]  # noqa: PTH100
    if outside:
        raise ValueError(
            f"{len(outside)} of {len(names)} files of a dataset of {len(records)} records lie outside "
            f"{' and '.join(roots)}, first {outside[0]}: write their names relative to that folder, or name a folder "
            "above all of them"
        )
