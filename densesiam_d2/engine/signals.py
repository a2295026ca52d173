"""Handlers of SIGTERM and SIGUSR1, which schedulers send to ask a run to end, and of SIGINT, which is Ctrl-C."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator

from densesiam_d2.processes import STOP_SIGNALS

__all__ = ["handle_stop_signals"]

_depth = 0  # number of active handle_stop_signals
_masks = threading.local()  # signal mask before a fork


def _before_fork() -> None:
    """Block the signals until the new process has set its own handlers; an early signal would be lost otherwise."""
    if _depth:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork(*, in_child: bool) -> None:
    """In the new process, let the signals end it as usual: a Python handler does not interrupt every wait.

    But ignore SIGINT: a terminal sends it to all processes, and the parent, which may still need this one, reacts.
    """
    if _depth:
        if in_child:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=functools.partial(_after_fork, in_child=False),
    after_in_child=functools.partial(_after_fork, in_child=True),
)


@contextlib.contextmanager
def handle_stop_signals(react: Callable[[int], None]) -> Iterator[None]:
    """Inside the ``with`` block, SIGTERM, SIGUSR1 and SIGINT to this process call ``react`` with their number.

    A second SIGINT raises KeyboardInterrupt, for a person who does not want to wait for the reaction. A SIGINT that is
    ignored stays ignored: shells do so for commands in the background of a script. In forked processes, such as those
    of a pool, SIGTERM and SIGUSR1 end the process as usual, and SIGINT is ignored. Outside the main thread this does
    nothing, because only the main thread can set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _depth
    interrupted = False

    def handle(number: int, frame) -> None:
        nonlocal interrupted
        if number == signal.SIGINT:
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
        react(number)

    numbers = [n for n in STOP_SIGNALS if n != signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
