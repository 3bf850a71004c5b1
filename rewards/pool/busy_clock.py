"""Record the intervals in which an actor was busy. The number of intervals is bounded, and recording is cheap."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

# The key is an activity. The value is its intervals (begin, end) in seconds since the epoch, in order, not overlapping.
Busy = dict[str, list[tuple[float, float]]]

# Two intervals are joined into one if the gap between them is smaller than this, in seconds.
_GAP_S = 0.02
# Number of intervals that are kept for each activity; if there are more, those with the smallest gaps are joined.
MOST = 32
_Item = TypeVar("_Item")


class BusyClock:
    """Collects intervals until `take` is called. Several threads may write and read it."""

    def __init__(self) -> None:
        """Start without any interval."""
        self._lock = threading.Lock()
        self._busy: Busy = {}
        self._gap_s: dict[str, float] = {}

    def add(self, what: str, begin: float, end: float) -> None:
        """Record an interval of the activity `what`, in seconds since the epoch; intervals may overlap."""
        if end < begin:
            return  # the clock was set back, so the duration is unknown
        with self._lock:
            kept = self._busy.setdefault(what, [])
            gap_s = self._gap_s.get(what, _GAP_S)
            while kept and begin <= kept[-1][1] + gap_s and kept[-1][0] <= end + gap_s:
                before = kept.pop()
                begin, end = min(begin, before[0]), max(end, before[1])
            kept.append((begin, end))
            while len(kept) > MOST:
                self._gap_s[what] = gap_s = 2 * gap_s
                kept[:] = _joined(kept, gap_s)

    def merge(self, busy: Mapping[str, Iterable[tuple[float, float]]]) -> None:
        """Add the intervals of another clock."""
        for what, intervals in busy.items():
            for begin, end in intervals:
                self.add(what, begin, end)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Record the time of the block as this activity."""
        began = time.time()
        try:
            yield
        finally:
            self.add(what, began, time.time())

    def each(self, what: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items. The time of making an item counts as this activity; the time of using it does not."""
        made = iter(items)
        while True:
            with self.during(what):
                try:
                    item = next(made)
                except StopIteration:
                    return
            yield item

    def take(self) -> Busy:
        """The intervals since the last call of this method."""
        with self._lock:
            taken, self._busy, self._gap_s = self._busy, {}, {}
        return {what: _joined(intervals, _GAP_S) for what, intervals in taken.items()}


def _joined(intervals: Iterable[tuple[float, float]], gap_s: float) -> list[tuple[float, float]]:
    """The intervals in order; two intervals are joined if the gap between them is less than `gap_s`."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1] + gap_s:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
