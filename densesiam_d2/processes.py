"""What several kinds of processes of this package need."""

import ctypes
import signal
import sys

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends, however it ends; nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
