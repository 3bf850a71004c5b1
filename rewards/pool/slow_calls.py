"""Calls that take long: their deadlines, their pace, and which of them give way to the others."""

from __future__ import annotations

from collections.abc import Iterable

from rewards.pool.limits import PoolLimits
from rewards.pool.stats import Recorder
from rewards.pool.worker_handle import LOOK_S, Busy, Pace, WorkerHandle

# Seconds after which no other call waits behind a call.
_ALONE_S = 0.01
# A call is stalled after this share of its deadline.
_STALLED_SHARE = 0.25
# A call is unusual beyond this many times the 99th percentile of its verifier's processor time, and beyond this time.
_UNUSUAL, _LEAST_UNUSUAL_S = 3.0, 0.012
# The machine has starved a call that was ready to run but got a processor for less than this share of its deadline.
STARVED_SHARE = 0.1


class SlowCalls:
    """Looks at the calls that are running; used by one thread."""

    def __init__(self, limits: PoolLimits, recorder: Recorder) -> None:
        self._deadline_s, self._recorder = limits.deadline_s, recorder
        # A call waits for its turn as long as other calls of the pool run, and each of these has a deadline.
        self._longest_wait_s = limits.deadline_s * (limits.workers + limits.spares)

    def allowed(self, worker: WorkerHandle, busy: Busy) -> float:
        """Seconds that the running call may take: its deadline, and the time that it has waited for its turn."""
        waited = min(worker.process.page.waited_s(), self._longest_wait_s)
        return self._deadline_s * (2 if busy.extended else 1) + waited

    def extend(self, worker: WorkerHandle, busy: Busy) -> bool:
        """At the deadline, give a call the same time once more when the machine has kept it from its work.

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
        """Time on the monotonic clock at which the call needs a look, or reaches its deadline."""
        overdue = busy.since + self.allowed(worker, busy)
        return overdue if busy.pace >= Pace.UNUSUAL else min(overdue, busy.look_at)

    def look(self, worker: WorkerHandle, busy: Busy, now: float) -> Pace:
        """Return the pace of the running call, and set the time of the next look."""
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
    """While there are other calls to run, let unusual calls run only on a processor that nobody else wants.

    A few calls that spin must not slow all the others down. Without other calls they run as usual: programs outside
    the pool must not starve an honest call that takes long.
    """
    for worker in workers:
        worker.hold_back(others)
