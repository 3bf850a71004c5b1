"""The time of each phase of a step."""

from __future__ import annotations

import logging
import time

from grpo.cluster import activity
from grpo.types import Phase
from rewards.pool.busy_clock import BusyClock

logger = logging.getLogger(__name__)


class Stopwatch:
    """Measures phases. The start of a phase ends the previous phase."""

    def __init__(self) -> None:
        """Start to measure. No phase has begun yet."""
        self.begun_at = time.time()
        """Time at which the stopwatch was made, in seconds since the epoch."""
        self.busy = BusyClock()
        """The times of the phases that have ended."""
        self._begun = self._switched = time.perf_counter()
        self._phase: Phase | None = None
        self._seconds: dict[Phase, float] = {}
        self._first: dict[Phase, float] = {}

    def start(self, phase: Phase | None) -> None:
        """End the current phase, if any, and start `phase`. If `phase` is None, only end the current phase."""
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._switched
            began_s = self._switched - self._begun
            self.busy.add(self._phase, self.begun_at + began_s, self.begun_at + now - self._begun)
        self._phase, self._switched = phase, now
        if phase is not None:
            self._first.setdefault(phase, now - self._begun)
        logger.debug("phase %s", phase or "between two")
        activity.current().time(phase)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._begun

    def starts(self) -> dict[str, float]:
        """Return `time/<phase>_from_s` of every phase: seconds until the phase first started."""
        return {f"time/{phase}_from_s": seconds for phase, seconds in self._first.items()}

    def metrics(self) -> dict[str, float]:
        """Return `time/<phase>_s` of every phase that has ended, and the total, `time/step_s`."""
        named = {f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()}
        return {**named, "time/step_s": self.elapsed_s}
