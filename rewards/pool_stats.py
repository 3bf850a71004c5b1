"""What a pool has done: counts by verifier and status, latencies, cache hits, restarts."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rewards.verdict import Status

# Latencies kept per verifier: enough for a stable 99th percentile, small enough to sort on every report.
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class VerifierStats:
    """One verifier's record.

    Attributes:
        calls: verdicts given.
        statuses: verdicts by status.
        p50_s, p99_s: seconds of the last calls, timeouts counted with their deadline; 0 before the first.
        cache_hit_rate: share of calls that the verifier's own cache answered.
    """

    calls: int
    statuses: Mapping[Status, int]
    p50_s: float
    p99_s: float
    cache_hit_rate: float

    @property
    def failure_rate(self) -> float:
        """Share of the verdicts that are `timeout` or `error`."""
        failed = sum(count for status, count in self.statuses.items() if status.failed)
        return failed / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool's record: per verifier, and of its processes.

    Attributes:
        verifiers: by name.
        queued: calls that no worker has yet.
        started: worker processes started.
        killed: workers killed at a deadline.
        died: workers that died otherwise.
        replayed: calls given to another worker after theirs died.
    """

    verifiers: Mapping[str, VerifierStats]
    queued: int
    started: int
    killed: int
    died: int
    replayed: int


class Recorder:
    """Counts, written by the supervising thread and read by any."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[str, Counter[Status]] = {name: Counter() for name in names}
        self._seconds: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in self._statuses}
        self._hits: Counter[str] = Counter()
        self._events: Counter[str] = Counter()

    def verdict(self, name: str, status: Status, seconds: float, hit: bool) -> None:
        """Count one verdict."""
        with self._lock:
            self._statuses[name][status] += 1
            self._seconds[name].append(seconds)
            self._hits[name] += hit

    def event(self, kind: str) -> None:
        """Count `started`, `killed`, `died` or `replayed`."""
        with self._lock:
            self._events[kind] += 1

    def mean_seconds(self, name: str) -> float:
        """Mean of the last calls' seconds; infinite before the first call, so that nobody batches blindly."""
        kept = self._seconds[name]
        return sum(list(kept)[-32:]) / min(len(kept), 32) if kept else float("inf")

    def snapshot(self, queued: int) -> PoolStats:
        """The record so far."""
        with self._lock:
            verifiers = {}
            for name, statuses in self._statuses.items():
                calls, seconds = statuses.total(), sorted(self._seconds[name])
                hit_rate = self._hits[name] / max(calls, 1)
                verifiers[name] = VerifierStats(
                    calls, dict(statuses), _quantile(seconds, 0.5), _quantile(seconds, 0.99), hit_rate
                )
            events = self._events
            return PoolStats(verifiers, queued, events["started"], events["killed"], events["died"], events["replayed"])


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
