import contextlib
import multiprocessing
import os
import signal
import threading
import time

import pytest

from densesiam_d2.engine.signals import handle_stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_process_reacts_while_it_holds(number):
    before, seen = signal.getsignal(number), []
    with handle_stop_signals(seen.append):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert seen == [number]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_is_a_keyboard_interrupt():
    seen = []
    with handle_stop_signals(seen.append):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]


def test_a_ctrl_c_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handle_stop_signals(lambda number: pytest.fail("it reacted")):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_pool_that_is_forked_meanwhile_ends_as_usual():
    """multiprocessing.Pool ends its processes by SIGTERM, and waits for them."""
    seen = []
    for _ in range(30):  # a signal that comes while a process starts must not be lost
        with handle_stop_signals(seen.append), multiprocessing.get_context("fork").Pool(4) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]
    assert seen == []


@contextlib.contextmanager
def process_that_waits_in_c_code():
    """Fork a process that waits for a lock while signals are handled; gives the process and the lock."""
    context = multiprocessing.get_context("fork")
    lock = context.Lock()
    lock.acquire()
    with handle_stop_signals(lambda number: None):
        process = context.Process(target=lock.acquire)
        process.start()
        yield process, lock


def test_a_process_that_waits_in_c_code_ends_as_usual():
    """A handler in Python would not run while a lock is waited for, if the signal came just before."""
    with process_that_waits_in_c_code() as (process, _):
        process.terminate()
        process.join(20)
        assert process.exitcode == -signal.SIGTERM


def test_a_forked_process_leaves_ctrl_c_to_its_parent():
    with process_that_waits_in_c_code() as (process, lock):
        os.kill(process.pid, signal.SIGINT)
        process.join(1)
        assert process.exitcode is None
        lock.release()
        process.join(20)
        assert process.exitcode == 0


def test_other_threads_are_left_alone():
    errors = []

    def use():
        try:
            with handle_stop_signals(errors.append):
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors == []
