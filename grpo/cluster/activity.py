"""What the driver of a job does and waits for at present, written by its thread for the watchdog's to read.

Something that happened, a wait that ended, a phase that began, is progress; a wait that goes on is none. Each start of
a job has an activity of its own, which whatever waits in the driver's thread reaches by `current`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from grpo.types import Phase


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that has not come yet.

    Attributes:
        what: in words, as an error would tell it.
        references: Ray's references to it, where it is a task's result.
    """

    what: str
    references: tuple[Any, ...] = ()


class Activity:
    """The present phase and waits. Lists are replaced, never changed, so that another thread may look at any time."""

    def __init__(self) -> None:
        """Nothing begun."""
        self._phases: tuple[tuple[Phase, str], ...] = ()
        self._timed: Phase | None = None
        self._waits: tuple[Wait, ...] = ()
        self._moved_at = time.monotonic()

    def moved(self) -> None:
        """Something came: the driver is not stuck."""
        self._moved_at = time.monotonic()

    def time(self, phase: Phase | None) -> None:
        """A part of a step begins; None: it ended."""
        self._timed = phase
        self.moved()

    @contextlib.contextmanager
    def within(self, phase: Phase, text: str = "") -> Iterator[None]:
        """The block is a phase outside of steps, such as a start, a checkpoint or an evaluation; `text` says more."""
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
        """The block waits for `what`."""
        before = self._waits
        self._waits = (*before, Wait(what, tuple(references)))
        try:
            yield
        finally:
            self._waits = before
            self.moved()

    @property
    def phase(self) -> tuple[Phase, str]:
        """The part of a step, and outside of steps the innermost phase; and how a person reads it."""
        phase, text = self._phases[-1] if self._phases else (self._timed or Phase.BETWEEN_STEPS, "")
        return phase, text or phase.replace("_", " ")

    @property
    def waits(self) -> tuple[Wait, ...]:
        """What is waited for, outermost first."""
        return self._waits

    @property
    def still_s(self) -> float:
        """Seconds since something moved."""
        return time.monotonic() - self._moved_at


_current: ContextVar[Activity] = ContextVar("activity")


def current() -> Activity:
    """The activity of the job that this thread drives; outside of jobs one that nobody watches."""
    return _current.get(None) or Activity()


@contextlib.contextmanager
def driving() -> Iterator[Activity]:
    """This thread drives a job while the block runs: the job's activity."""
    token = _current.set(Activity())
    try:
        yield current()
    finally:
        _current.reset(token)
