"""A function for all processes that this package starts."""

import ctypes
import signal
import sys

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """On Linux, let the kernel kill this process when its parent ends or is killed; on other systems do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
