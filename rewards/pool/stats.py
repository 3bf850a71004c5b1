"""Statistics of a pool: verdicts by verifier and status, latencies, cache hits, restarts."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rewards.pool.busy_clock import BusyClock
from rewards.verdict import Status

# Latencies kept for each verifier: enough for a stable 99th percentile, few enough to sort at every report.
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class VerifierStats:
    """Statistics of one verifier.

    Attributes:
        calls: number of verdicts.
        statuses: number of verdicts by status.
        p50_s, p99_s: percentiles of the durations of the last calls, in seconds. For a timeout, its deadline counts.
            Both are 0 before the first call.
        cache_hit_rate: share of the calls whose verdict came from the verifier's cache.
    """

    calls: int
    statuses: Mapping[Status, int]
    p50_s: float
    p99_s: float
    cache_hit_rate: float


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Statistics of a pool.

    Attributes:
        verifiers: statistics of each verifier; the key is the verifier's name.
        queued: number of calls that were not given to a worker yet.
        started: number of workers that were started.
        killed: number of workers that were killed at a deadline.
        died: number of workers that died for another reason.
        replayed: number of calls that were given to another worker after their worker died.
    """

    verifiers: Mapping[str, VerifierStats]
    queued: int
    started: int
    killed: int
    died: int
    replayed: int


@dataclass(slots=True)
class Tally:
    """Counts of one verifier; tallies of several pools can be added up."""

    statuses: Counter[Status] = field(default_factory=Counter)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    hits: int = 0

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.statuses.update(other.statuses)
        self.seconds.extend(other.seconds)
        self.hits += other.hits

    def stats(self) -> VerifierStats:
        """The statistics that follow from the counts."""
        calls, seconds = self.statuses.total(), sorted(self.seconds)
        hit_rate = self.hits / max(calls, 1)
        return VerifierStats(calls, dict(self.statuses), _quantile(seconds, 0.5), _quantile(seconds, 0.99), hit_rate)


class Recorder:
    """Counts verdicts and events; the supervising thread writes, any thread may read."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self.busy = BusyClock()
        self._total = {name: Tally() for name in names}
        self._recent = {name: Tally() for name in self._total}
        # Only the supervising thread uses the next two attributes.
        self._finished: dict[str, deque[float]] = {name: deque(maxlen=32) for name in self._total}
        self._processor: dict[str, deque[float]] = {name: deque(maxlen=512) for name in self._total}
        self._events: Counter[str] = Counter()

    def verdict(self, name: str, status: Status, seconds: float, hit: bool) -> None:
        """Count the verdict of a call that has just ended, after this many seconds."""
        now = time.time()
        self.busy.add("verify", now - seconds, now)
        with self._lock:
            for tally in (self._total[name], self._recent[name]):
                tally.statuses[status] += 1
                tally.seconds.append(seconds)
                tally.hits += hit

    def take_recent(self) -> dict[str, Tally]:
        """Counts by verifier since the last call of this method. Verifiers that gave no verdict are left out."""
        with self._lock:
            recent, self._recent = self._recent, {name: Tally() for name in self._total}
        return {name: tally for name, tally in recent.items() if tally.statuses}

    def event(self, kind: str) -> None:
        """Count `started`, `killed`, `died` or `replayed`."""
        with self._lock:
            self._events[kind] += 1

    def finished(self, name: str, seconds: float, processor: float) -> None:
        """Record the real time and the processor time of a call that has ended, in seconds."""
        self._finished[name].append(seconds)
        self._processor[name].append(processor)

    def usual_processor_s(self, name: str) -> float:
        """The 99th percentile of the processor time of calls that ended; infinite before 100 calls have ended."""
        costs = self._processor[name]
        return _quantile(sorted(costs), 0.99) if len(costs) >= 100 else float("inf")

    def mean_s(self, name: str) -> float:
        """Mean real time of the last calls; infinite before the first call ends, so that the first batch is small."""
        kept = self._finished[name]
        last = [kept[-at] for at in range(1, min(len(kept), 32) + 1)]
        return sum(last) / len(last) if last else float("inf")

    def snapshot(self, queued: int) -> PoolStats:
        """The statistics so far."""
        with self._lock:
            verifiers = {name: tally.stats() for name, tally in self._total.items()}
            events = self._events
            return PoolStats(verifiers, queued, events["started"], events["killed"], events["died"], events["replayed"])


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
