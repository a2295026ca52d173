"""One run per folder."""

import argparse
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from detectron2.config import CfgNode

__all__ = ["claim_folder"]

NAME = ".run.lock"


def claim_folder(cfg: CfgNode, args: argparse.Namespace) -> TextIO | None:
    """Claim OUTPUT_DIR for this training until its first process ends, however it ends.

    Args:
        cfg: the config; the folder is made if it is not there.
        args: the parsed command line.

    Returns:
        The open lock file, which holds the claim until it is closed; None where another process of this run does that,
        and for runs that do not train.

    Raises:
        ValueError: another run has the folder; the message says which.
    """
    first = int(os.environ.get("RANK", args.machine_rank)) == 0
    if args.eval_only or args.dry_run or not first:
        return None
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / NAME).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by loader workers
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(f"OUTPUT_DIR {folder} is in use by {owner}: wait for it, or name another one") from None
    except OSError as error:  # a file system without locks
        logging.getLogger(__name__).warning("cannot lock %s, so nothing keeps a second run out: %s", folder, error)
        return file
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file
