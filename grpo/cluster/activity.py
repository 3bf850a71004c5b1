"""The current activity and waits of a job's driver. The driver's thread writes them; the watchdog reads them.

An event, the start of a phase and the end of a wait are progress; a wait that continues is not progress. Each start of
a job has a separate activity. Code in the driver's thread gets this activity from `current`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from grpo.types import Phase


@dataclass(frozen=True, slots=True)
class Wait:
    """A result that has not arrived yet.

    Attributes:
        what: description of the result, for messages.
        references: Ray's references to the result, if it is a task's result.
    """

    what: str
    references: tuple[Any, ...] = ()


class Activity:
    """The present phase and waits. Tuples are replaced, never changed, so another thread may read them at any time."""

    def __init__(self) -> None:
        """Begin with no phase and no waits."""
        self._phases: tuple[tuple[Phase, str], ...] = ()
        self._timed: Phase | None = None
        self._waits: tuple[Wait, ...] = ()
        self._moved_at = time.monotonic()
        self._uninterrupted = 0
        self._interruption: Callable[[], NoReturn] | None = None

    def moved(self) -> None:
        """Note progress: the driver is not stuck."""
        self._moved_at = time.monotonic()

    def time(self, phase: Phase | None) -> None:
        """Note the start of a part of a step; if `phase` is None, note the end of the current part."""
        self._timed = phase
        self.moved()

    @contextlib.contextmanager
    def within(self, phase: Phase, text: str = "") -> Iterator[None]:
        """Mark the block as a phase outside of steps, such as a start or an evaluation; `text` describes the phase."""
        before = self._phases
        self._phases = (*before, (phase, text))
        self.moved()
        try:
            yield
        finally:
            self._phases = before
            self.moved()

    @contextlib.contextmanager
    def waiting(self, what: str, references: Sequence[Any] = ()) -> Iterator[None]:
        """Note that the block waits for `what`."""
        before = self._waits
        self._waits = (*before, Wait(what, tuple(references)))
        try:
            yield
        finally:
            self._waits = before
            self.moved()

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let `interrupt` wait for the end of the block, because the block calls code that loses other errors."""
        self._uninterrupted += 1
        try:
            yield
        finally:
            self._uninterrupted -= 1
            if self._interruption and not self._uninterrupted:
                end, self._interruption = self._interruption, None
                end()

    def interrupt(self, end: Callable[[], NoReturn]) -> None:
        """Call `end`, which raises an error; inside an `uninterrupted` block, call it when the block ends.

        Only the handler of a signal may call this, in the driver's thread.
        """
        if not self._uninterrupted:
            end()
        self._interruption = end

    @property
    def phase(self) -> tuple[Phase, str]:
        """The innermost phase outside of steps, otherwise the current part of the step; and the phase's description."""
        phase, text = self._phases[-1] if self._phases else (self._timed or Phase.BETWEEN_STEPS, "")
        return phase, text or phase.replace("_", " ")

    @property
    def waits(self) -> tuple[Wait, ...]:
        """The current waits, outermost first."""
        return self._waits

    @property
    def still_s(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._moved_at


_current: ContextVar[Activity] = ContextVar("activity")


def current() -> Activity:
    """Return the activity of this thread's job. Outside of jobs, return a new activity that nobody watches."""
    return _current.get(None) or Activity()


@contextlib.contextmanager
def driving() -> Iterator[Activity]:
    """Make this thread the driver of a job while the block runs; yield the job's activity."""
    token = _current.set(Activity())
    try:
        yield current()
    finally:
        _current.reset(token)
