"""Exit codes and signals, and how a process ends with its parent."""

import ctypes
import signal
import sys

__all__ = ["INTERRUPTED", "PREEMPTED", "STOP_SIGNALS", "end_with_parent"]

INTERRUPTED = 130  # 128 + SIGINT, as shells say it: a second Ctrl-C ended the program without a save
PREEMPTED = 75  # EX_TEMPFAIL, the exit code of what was stopped: the scheduler should start it again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of schedulers and Ctrl-C; they ask a run to end


def end_with_parent() -> None:
    """On Linux, let the kernel kill this process when its parent ends or is killed; on other systems do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
