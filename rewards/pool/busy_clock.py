"""What an actor was busy with, and when, by its own clock: bounded, and cheap enough to keep always."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

# By what it did: when it did it, as (begin, end) in seconds since the epoch, rising and apart.
Busy = dict[str, list[tuple[float, float]]]

# Neighbours with less than this between them are told as one.
_GAP_S = 0.02
# Intervals of one kind that are kept; where there are more, the nearest of them become one.
MOST = 32
_Item = TypeVar("_Item")


class BusyClock:
    """Gathers intervals until they are taken. May be written and read by several threads."""

    def __init__(self) -> None:
        """Nothing done yet."""
        self._lock = threading.Lock()
        self._busy: Busy = {}
        self._gap_s: dict[str, float] = {}

    def add(self, what: str, begin: float, end: float) -> None:
        """It did this from `begin` to `end`, seconds since the epoch; intervals may overlap."""
        if end < begin:
            return  # the clock was set back meanwhile, and nobody knows how long this took
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
        """Take over what another clock gave out."""
        for what, intervals in busy.items():
            for begin, end in intervals:
                self.add(what, begin, end)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """It does this for as long as the block lasts."""
        began = time.time()
        try:
            yield
        finally:
            self.add(what, began, time.time())

    def each(self, what: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """The same items; it does this while they are made, and not while they are used."""
        made = iter(items)
        while True:
            with self.during(what):
                try:
                    item = next(made)
                except StopIteration:
                    return
            yield item

    def take(self) -> Busy:
        """All since this was last asked."""
        with self._lock:
            taken, self._busy, self._gap_s = self._busy, {}, {}
        return {what: _joined(intervals, _GAP_S) for what, intervals in taken.items()}


def _joined(intervals: Iterable[tuple[float, float]], gap_s: float) -> list[tuple[float, float]]:
    """The same time in their order, as one interval where there is less than `gap_s` between two."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1] + gap_s:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
