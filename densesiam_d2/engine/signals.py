"""What SIGTERM and SIGUSR1 do to a run: schedulers send them to ask for an end."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["PREEMPTED", "handle_stop_signals"]

PREEMPTED = 75  # EX_TEMPFAIL: start me again


@contextlib.contextmanager
def handle_stop_signals(react: Callable[[int], None]) -> Iterator[None]:
    """While this holds, SIGTERM and SIGUSR1 to this process call ``react`` with their number.

    Processes forked from it, such as those of a pool, end by them as usual. Does nothing outside the main thread, which
    alone can have handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame) -> None:
        if os.getpid() == owner:
            react(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
