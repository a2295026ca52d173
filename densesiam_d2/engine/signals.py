"""SIGTERM and SIGUSR1, which schedulers send to ask a run to end."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["PREEMPTED", "handle_stop_signals"]

PREEMPTED = 75  # EX_TEMPFAIL: start me again

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1)
_depth = 0  # of handle_stop_signals
_masks = threading.local()  # of signals, before a fork


def _before_fork() -> None:
    """Hold the signals back until the new process has its own way of taking them, or one that comes early is lost."""
    if _depth:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def _after_fork(*, in_child: bool) -> None:
    """Let the new process end by the signals as usual: a handler in Python does not interrupt every wait."""
    if _depth:
        if in_child:
            for number in _NUMBERS:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=functools.partial(_after_fork, in_child=False),
    after_in_child=functools.partial(_after_fork, in_child=True),
)


@contextlib.contextmanager
def handle_stop_signals(react: Callable[[int], None]) -> Iterator[None]:
    """While this holds, SIGTERM and SIGUSR1 to this process call ``react`` with their number.

    Processes forked from it, such as those of a pool, end by them as usual. Does nothing outside the main thread, which
    alone can have handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _depth
    before = {number: signal.signal(number, lambda number, frame: react(number)) for number in _NUMBERS}
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
