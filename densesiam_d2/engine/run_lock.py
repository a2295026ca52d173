"""Make sure that only one run at a time uses an OUTPUT_DIR, or another thing that a file stands for."""

import argparse
import fcntl
import logging
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import TextIO

from detectron2.config import CfgNode

__all__ = ["InUseError", "claim_folder", "lock_file"]

NAME = ".run.lock"


class InUseError(ValueError):
    """Another process holds a lock; the message names it."""


def claim_folder(cfg: CfgNode, args: argparse.Namespace) -> TextIO | None:
    """Create OUTPUT_DIR, and lock it for this training until its first process ends, even if that process is killed.

    Args:
        cfg: the config.
        args: the parsed command line.

    Returns:
        The open lock file; the lock lasts until it is closed. None in all processes but the first, and for runs that do
        not train in the folder itself.

    Raises:
        ValueError: another run uses the folder, or it cannot be created or written; the message names it.
    """
    first = int(os.environ.get("RANK", args.machine_rank)) == 0
    if args.dry_run or not first:
        return None
    folder = Path(cfg.OUTPUT_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if args.eval_only or args.seeds:
            tempfile.TemporaryFile(dir=folder).close()  # to see that it can be written
            return None
        return lock_file(folder / NAME)
    except InUseError as error:
        raise ValueError(f"OUTPUT_DIR {folder} is in use by {error}: wait for it, or name another one") from None
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR {folder}: {error.strerror}: name a folder that can be written") from error


def lock_file(path: Path) -> TextIO:
    """Lock a file until it is closed or this process ends, even if that process is killed.

    Other processes are kept out, also on other machines that share the file system; this process is not.

    Args:
        path: the file; it and its folder are created if they do not exist. It names the process that holds the lock.

    Returns:
        The open file.

    Raises:
        InUseError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes do not inherit it, unlike flock
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise InUseError(owner) from None
    except OSError as error:  # a file system without locks
        logging.getLogger(__name__).warning("cannot lock %s, so nothing keeps a second run out: %s", path, error)
        return file
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file
