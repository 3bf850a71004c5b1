"""The parent's view of one worker of async verifiers, and the calls that were given to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rewards.pool.jobs import PoolJob
from rewards.pool.processes import WorkerProcess
from rewards.verdict import Verdict

# A call that has used the processor for this many seconds without a pause counts as blocking the event loop.
_HOLD_S = 0.2


@dataclass(slots=True)
class Flight:
    """A call that was given to a worker and is not answered yet.

    Attributes:
        job: the call.
        begun_at: time at which the call was given to the worker, in seconds of the monotonic clock.
        processor_ns: processor time that the worker had used at `begun_at`, in nanoseconds.
        verdicts: verdicts received so far; the worker sends the verdicts of a group one after the other.
        extended: whether the call got its deadline a second time.
        given_up_at: time at which the call was cancelled; None if it was not cancelled.
        stage: stage of the call when it was cancelled.
    """

    job: PoolJob
    begun_at: float
    processor_ns: int
    verdicts: list[Verdict] = field(default_factory=list)
    extended: bool = False
    given_up_at: float | None = None
    stage: str = ""


@dataclass(slots=True, eq=False)
class AsyncWorker:
    """A worker, and the calls that it has not answered.

    Attributes:
        process: process of the worker.
        ready: whether the worker has reported that it can take calls.
        flights: the worker's unanswered calls; the key is the identity of the call.
        given_up: identities of the calls that were cancelled.
        look_at: time on the monotonic clock at which the calls must be checked, at the latest.
    """

    process: WorkerProcess
    ready: bool = False
    flights: dict[int, Flight] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)
    look_at: float = math.inf

    @property
    def is_stuck(self) -> bool:
        """Whether a call that was cancelled has not ended yet."""
        return bool(self.given_up)

    def remove(self, flight: Flight) -> None:
        """Forget a call that has ended."""
        del self.flights[flight.job.identity]
        self.given_up.discard(flight.job.identity)

    def holder(self, now: float) -> Flight | None:
        """The call that blocks the event loop; None if no call blocks it."""
        identity, since = self.process.page.running()
        return self.flights.get(identity) if now - since > _HOLD_S else None
