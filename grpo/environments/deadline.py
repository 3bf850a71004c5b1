"""Interrupts a tool at its deadline, inside the process that runs it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Overdue(BaseException):
    """A tool missed its deadline. It is no `Exception`, so a tool's own `except Exception` does not catch it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `Overdue` in the block after some seconds.

    Signals reach only the main thread, and no signal interrupts a library's C code. So in another thread, or in such
    code, nothing happens here, and whoever started the process must kill it.

    Args:
        seconds: seconds until `Overdue`; at 0 or less, at once.

    Raises:
        Overdue: the block took longer.
    """
    if seconds <= 0:
        raise Overdue
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # An alarm may arrive while the block ends. Then `armed` is already false, or the block ends with `Overdue`; in both
    # cases no later alarm comes, because the timer fires once.
    armed = True

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Overdue

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
