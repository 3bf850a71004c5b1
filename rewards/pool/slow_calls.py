"""Calls that take long: their deadlines, their pace, and the decision which calls must give way to other calls."""

from __future__ import annotations

from collections.abc import Iterable

from rewards.pool.limits import PoolLimits
from rewards.pool.stats import Recorder
from rewards.pool.worker_handle import LOOK_S, Busy, Pace, WorkerHandle

# When a call has run for this many seconds, the calls that wait behind it are given to other workers.
_ALONE_S = 0.01
# A call counts as stalled after this share of its deadline.
_STALLED_SHARE = 0.25
# A call is unusual if its processor time is above `_LEAST_UNUSUAL_S`, and above `_UNUSUAL` times the 99th percentile of
# its verifier's processor time.
_UNUSUAL, _LEAST_UNUSUAL_S = 3.0, 0.012
# A call counts as starved by the machine if it was ready to run but got a processor for less than this share of its
# deadline.
STARVED_SHARE = 0.1


class SlowCalls:
    """Checks the calls that are running; used by one thread."""

    def __init__(self, limits: PoolLimits, recorder: Recorder) -> None:
        self._deadline_s, self._recorder = limits.deadline_s, recorder
        # A call may have to wait for a processor while other calls of the pool run, and each of these has a deadline.
        self._longest_wait_s = limits.deadline_s * (limits.workers + limits.spares)

    def allowed(self, worker: WorkerHandle, busy: Busy) -> float:
        """Seconds that the running call may take: its deadline plus the time that it has waited for a processor."""
        waited = min(worker.process.page.waited_s(), self._longest_wait_s)
        return self._deadline_s * (2 if busy.extended else 1) + waited

    def extend(self, worker: WorkerHandle, busy: Busy) -> bool:
        """At the deadline, give a call the same time once more if other programs have kept it from a processor.

        Such a call was ready to run but got almost no processor time, and the pool did not hold it back.
        """
        if busy.extended or busy.pace >= Pace.UNUSUAL:
            return False
        seen = worker.look()
        starved = seen is None or (seen[1] < STARVED_SHARE * self._deadline_s and not worker.process.asleep())
        if starved:
            worker.extend()
        return starved

    def next_look(self, worker: WorkerHandle, busy: Busy) -> float:
        """Time on the monotonic clock at which the call must be checked again, or reaches its deadline."""
        overdue = busy.since + self.allowed(worker, busy)
        return overdue if busy.pace >= Pace.UNUSUAL else min(overdue, busy.look_at)

    def look(self, worker: WorkerHandle, busy: Busy, now: float) -> Pace:
        """Return the pace of the running call, and set the time of the next check."""
        elapsed = now - busy.since
        pause = max(LOOK_S, elapsed / 2)
        pace = Pace.ALONE if elapsed > _ALONE_S else Pace.FRESH
        if elapsed > _STALLED_SHARE * self._deadline_s:
            pace = Pace.STALLED
        seen = worker.look()
        if seen is not None:
            waits, processor = seen
            usual = self._recorder.usual_processor_s(busy.current.job.name)
            remaining = max(_LEAST_UNUSUAL_S, _UNUSUAL * usual) - processor
            if waits and not worker.process.page.works_elsewhere():
                pace = Pace.STALLED
            if remaining < 0:
                pace = Pace.UNUSUAL
            if not waits:
                pause = min(pause, max(remaining, LOOK_S / 4))
        worker.look_again(now + pause)
        return pace


def keep_back(workers: Iterable[WorkerHandle], others: bool) -> None:
    """While there are other calls to run, let unusual calls run only on otherwise idle processors.

    A few calls in an endless loop must not slow down all other calls. If there are no other calls, unusual calls run
    as usual, so that programs outside the pool cannot starve an honest call that takes long.
    """
    for worker in workers:
        worker.hold_back(others)
