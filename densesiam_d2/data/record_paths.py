"""What files the records of a dataset may name: local ones, below the dataset's own folders."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["check_record_paths"]

_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


def check_record_paths(records: Sequence[dict], roots: Iterable[str | Path] = ()) -> None:
    """Check that the files of a dataset are local and lie below its folders: annotations by others may name any file.

    Only names are compared, and nothing on disk is looked at. So ``root/../x`` lies outside, while a symbolic link
    below a root may lead anywhere: whoever put it there wanted that place to be read.

    Args:
        records: dicts of detectron2's dataset format; images, label maps and panoptic maps are looked at.
        roots: folders of the dataset; "" is the current one. Without any, files may lie anywhere on this machine.

    Raises:
        ValueError: a name is an address (``http://...``), or leads out of all roots.
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
    # Normalising a million paths would take seconds, so the plain case is settled by their spelling alone.
    plainly_below = re.compile(rf"(?:{'|'.join(map(re.escape, roots))})(?!.*\.\.)", re.DOTALL).match
    outside = [name for name in names if not plainly_below(name)]
    normalised = tuple(os.path.join(os.path.abspath(root), "") for root in roots)  # noqa: PTH100, PTH118
    outside = [name for name in outside if not os.path.abspath(name).startswith(normalised)]  # noqa: PTH100
    if outside:
        raise ValueError(
            f"{len(outside)} of {len(names)} files of a dataset of {len(records)} records lie outside "
            f"{' and '.join(roots)}, first {outside[0]}: move them below, or put a symbolic link to their folder there"
        )
