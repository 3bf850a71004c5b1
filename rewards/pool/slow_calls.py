"""Calls that take long: who takes over their place, and who stands back while others want the processors."""

from __future__ import annotations

from collections.abc import Iterable

from rewards.pool.limits import PoolLimits
from rewards.pool.processes import LOOK_S, WorkerHandle
from rewards.pool.stats import Recorder

# A worker no longer counts as capacity after this share of the deadline, or once its call has used this many times
# the processor time of its verifier's 99th percentile (and more than the least).
_STALLED_SHARE, _UNUSUAL, _LEAST_UNUSUAL_S = 0.25, 3.0, 0.012

# A call that has had the processor for less than this share of its deadline, while it wanted it, has been starved.
STARVED_SHARE = 0.1


class SlowCalls:
    """Looks at the calls that are running; used by one thread."""

    def __init__(self, limits: PoolLimits, recorder: Recorder) -> None:
        self._deadline_s, self._recorder = limits.deadline_s, recorder
        # Whoever waits for its turn waits for other calls of the pool, each of which has a deadline.
        self._longest_wait_s = limits.deadline_s * (limits.workers + limits.spares)

    def allowed(self, worker: WorkerHandle) -> float:
        """Seconds that the call which a worker runs may take; it is given back what it has waited for its turn."""
        waited = min(worker.page.waited_seconds(), self._longest_wait_s)
        return self._deadline_s * (2 if worker.extended else 1) + waited

    def extend(self, worker: WorkerHandle) -> bool:
        """At the deadline: give the same time once more to a call that the machine has kept from its work.

        That is one that had next to no processor although it wanted one, and not because it was held back here.
        """
        if worker.extended or worker.unusual:
            return False
        seen = worker.look()
        worker.extended = seen is None or (seen[1] < STARVED_SHARE * self._deadline_s and not worker.asleep())
        return worker.extended

    def next_look(self, worker: WorkerHandle) -> float:
        """When, on the monotonic clock, a busy worker must be looked at again or has reached its deadline."""
        overdue = worker.begun_at + self.allowed(worker)
        return overdue if worker.unusual else min(overdue, worker.look_at)

    def look(self, worker: WorkerHandle, now: float) -> None:
        """Decide whether a busy worker waits, or is out of the ordinary for its verifier.

        Either way it no longer counts as capacity; `keep_back` deals with the latter.
        """
        elapsed = now - worker.begun_at
        pause = max(LOOK_S, elapsed / 2)
        seen = worker.look()
        if seen is not None:
            waits, processor = seen
            worker.waits = waits and not worker.page.works_elsewhere()
            usual = self._recorder.usual_processor_seconds(worker.sent[0].job.name)
            left = max(_LEAST_UNUSUAL_S, _UNUSUAL * usual) - processor
            worker.unusual = left < 0
            if not waits:
                pause = min(pause, max(left, LOOK_S / 4))
        if worker.waits or worker.unusual or elapsed > _STALLED_SHARE * self._deadline_s:
            worker.stalled = True
        worker.look_at = now + pause


def keep_back(workers: Iterable[WorkerHandle], others: bool) -> None:
    """While there are other calls to run, let the unusual ones run only where a processor is free.

    A few calls that spin must not slow all the others down, and an honest one that takes long must not be starved by
    programs that are no part of the pool.
    """
    for worker in workers:
        if worker.unusual and worker.idle != others:
            worker.set_idle(others)
