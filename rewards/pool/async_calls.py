"""Calls of async verifiers: many under way in one worker, each with its own deadline."""

from __future__ import annotations

import math
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rewards.pool.async_worker import CANCEL, RUN
from rewards.pool.forks import Forks
from rewards.pool.jobs import PoolJob
from rewards.pool.limits import PoolLimits
from rewards.pool.processes import WorkerHandle, flush, import_hint
from rewards.pool.slow_calls import STARVED_SHARE
from rewards.pool.stats import Recorder
from rewards.pool.wire import ProtocolError, read_verdict
from rewards.verdict import Verdict, error, timeout

# A call that is given up has this long to end; then its worker is killed.
_GRACE_S = 1.0
# A call that has had the processor for this long at one go keeps the loop from turning.
_HOLD_S = 0.2
# How often calls that are overdue through no fault of theirs are looked at.
_LOOK_S = 0.05


@dataclass(slots=True)
class _Flight:
    """A call that a worker has."""

    job: PoolJob
    begun_at: float
    processor_ns: int
    got: list[Verdict] = field(default_factory=list)
    extended: bool = False
    given_up_at: float | None = None
    stage: str = ""


@dataclass(slots=True, eq=False)
class AsyncWorker:
    """A worker, and the calls that it has not answered."""

    handle: WorkerHandle
    flights: dict[int, _Flight] = field(default_factory=dict)
    # Those of them that were given up.
    given_up: set[int] = field(default_factory=set)
    # When, on the monotonic clock, some call of it must be looked at, or before.
    look_at: float = math.inf

    @property
    def is_stuck(self) -> bool:
        """Whether a call that was given up has not ended yet."""
        return bool(self.given_up)

    def remove(self, flight: _Flight) -> None:
        """It is answered."""
        del self.flights[flight.job.identity]
        self.given_up.discard(flight.job.identity)

    def holder(self, now: float) -> _Flight | None:
        """The call that keeps the loop from turning."""
        identity, since = self.handle.page.running()
        return self.flights.get(identity) if now - since > _HOLD_S else None


class AsyncCalls:
    """The workers of async verifiers; used by the supervising thread alone.

    There are as many as a pool has workers, beside those of the other verifiers: these mostly wait. The first takes
    calls while others start.

    Args:
        limits: the pool's.
        queue: calls that no worker has yet.
        recorder: counts.
        selector: to be told of what workers say; the data are the `AsyncWorker`.
        forks: where workers come from.
        finish: resolves the futures of a call; told its seconds and whether a cache answered.
    """

    def __init__(
        self,
        limits: PoolLimits,
        queue: deque[PoolJob],
        recorder: Recorder,
        selector: selectors.BaseSelector,
        forks: Forks,
        finish: Callable[[PoolJob, list[Verdict], float, bool], None],
    ) -> None:
        self._limits, self._queue, self._recorder, self._selector = limits, queue, recorder, selector
        self._forks, self._finish = forks, finish
        self.workers: list[AsyncWorker] = []

    def dispatch(self) -> None:
        """Start workers that are wanted, and give out the calls that wait, to the worker with the fewest."""
        while self._wants_worker():
            handle = self._forks.fork(asynchronous=True)
            if handle is None:
                break
            worker = AsyncWorker(handle)
            self.workers.append(worker)
            self._selector.register(handle.connection, selectors.EVENT_READ, worker)
        given: dict[AsyncWorker, list[PoolJob]] = {}
        takers = [worker for worker in self.workers if worker.handle.ready and not worker.is_stuck]
        while self._queue and takers:
            worker = min(takers, key=lambda each: len(each.flights))
            if len(worker.flights) >= self._limits.overlap:
                break
            job = self._queue.popleft()
            if job.start():
                flight = _Flight(job, time.monotonic(), worker.handle.processor_ns() or 0)
                worker.flights[job.identity] = flight
                worker.look_at = min(worker.look_at, self._overdue_at(flight))
                given.setdefault(worker, []).append(job)
        for worker, jobs in given.items():
            worker.handle.send((RUN, [job.message() for job in jobs]))
            flush(self._selector, worker.handle, worker)

    def on_event(self, worker: AsyncWorker, events: int) -> None:
        """Its connection can be read or written."""
        if worker not in self.workers:
            return  # ended while this round of events was being worked through
        if events & selectors.EVENT_WRITE:
            flush(self._selector, worker.handle, worker)
        if events & selectors.EVENT_READ:
            self._hear(worker)

    def patience(self, now: float) -> float:
        """Seconds until something must be looked at even if nobody says anything."""
        # Calls without any worker: one could not be forked, and that is to be tried again.
        waits = [0.0 if self._queue and not self.workers else 5.0]
        for worker in self.workers:
            if not worker.handle.ready:
                waits.append(worker.handle.begun_at + self._limits.start_s - now)
            waits.append(worker.look_at - now)
        return max(0.0, min(waits))

    def watch(self) -> None:
        """Give up calls at their deadline; replace workers that do not let go of them."""
        now = time.monotonic()
        for worker in list(self.workers):
            if not worker.handle.ready:
                if now - worker.handle.begun_at > self._limits.start_s:
                    self.bury(worker)
                continue
            if now < worker.look_at:
                continue
            late = [one for one in worker.flights.values() if one.given_up_at is None and now > self._overdue_at(one)]
            if late:
                self._hear(worker)  # the answer may be there, only not read yet
                if worker not in self.workers:
                    continue
            overdue = [one for one in late if one.job.identity in worker.flights and not self._extend(worker, one)]
            holder = worker.holder(now)
            # While one call keeps the loop from turning, no other can end, whatever its deadline.
            giving_up = [one for one in overdue if holder is None or holder is one]
            if giving_up:
                for flight in giving_up:
                    flight.given_up_at = now
                    worker.given_up.add(flight.job.identity)
                worker.handle.send((CANCEL, [flight.job.identity for flight in giving_up]))
                flush(self._selector, worker.handle, worker)
            if any(now > (worker.flights[each].given_up_at or now) + _GRACE_S for each in worker.given_up):
                self._kill(worker, now)
                continue
            ends = (
                self._overdue_at(one) if one.given_up_at is None else one.given_up_at + _GRACE_S
                for one in worker.flights.values()
            )
            worker.look_at = min((end if end > now else now + _LOOK_S for end in ends), default=math.inf)

    def bury(self, worker: AsyncWorker, cause: str = "") -> None:
        """It died on its own: replay its calls. The one that had the processor is taken to have killed it.

        Where none is known to, each of them may have, and counts a death.
        """
        identity, _ = worker.handle.page.running()
        at = worker.handle.page.read_stage()
        self._recorder.event("died")
        self._remove(worker)
        if not worker.handle.ready:
            self._forks.came_up(False)
        guilty = [flight for flight in worker.flights.values() if flight.job.identity == identity and not cause]
        for flight in guilty or worker.flights.values():
            flight.job.deaths += 1
        for flight in reversed(worker.flights.values()):
            job = flight.job
            if job.deaths <= self._limits.replays:
                self._replay(job)
            else:
                why = cause or f"its worker died {job.deaths} times"
                self._fail(job, error(f"{job.name}: {why}, at stage {at!r}"), 0.0)

    def take_all(self) -> list[PoolJob]:
        """End every worker; the calls that they had."""
        jobs = [flight.job for worker in self.workers for flight in worker.flights.values()]
        for worker in list(self.workers):
            self._remove(worker)
        return jobs

    def _wants_worker(self) -> bool:
        calls = len(self._queue) + sum(len(worker.flights) for worker in self.workers)
        active = sum(not worker.is_stuck for worker in self.workers)
        may_be = len(self.workers) < self._limits.workers + self._limits.spares
        return bool(self._queue) and active < min(self._limits.workers, calls) and may_be

    def _hear(self, worker: AsyncWorker) -> None:
        data = worker.handle.receive()
        if data is None:
            return
        if not data:
            self.bury(worker)
            return
        try:
            for reply in worker.handle.inbox.feed(data):
                self._take(worker, reply)
        except ProtocolError as problem:
            self.bury(worker, f"its worker sent {problem}")

    def _take(self, worker: AsyncWorker, reply: list[object]) -> None:
        if reply[0] == "ready":
            worker.handle.ready = True
            self._forks.came_up(True)
            return
        named = reply[1] if reply[0] in ("stage", "cancelled") and len(reply) > 1 else reply[0]
        flight = worker.flights.get(named) if isinstance(named, int) else None
        if flight is None:
            raise ProtocolError("an answer to nothing it was asked")
        elapsed = time.monotonic() - flight.begun_at
        if reply[0] == "stage":
            flight.stage = str(reply[-1])[:48]
            return
        if reply[0] == "cancelled":
            worker.remove(flight)
            self._time_out(flight, elapsed)
            return
        if len(reply) != 5:
            raise ProtocolError("an answer without its five fields")
        flight.got.append(read_verdict(reply[1]))
        if len(flight.got) < len(flight.job.completions):
            return
        worker.remove(flight)
        seconds = min(max(float(reply[2]), 0.0), elapsed) if isinstance(reply[2], (int, float)) else elapsed
        if flight.given_up_at is not None and seconds > self._allowed(flight):
            self._time_out(flight, elapsed)
        else:
            self._finish(flight.job, flight.got, seconds, bool(reply[4]))

    def _kill(self, worker: AsyncWorker, now: float) -> None:
        """A call does not let go: it is a timeout, and what else the worker had is given to others."""
        page = worker.handle.page
        (running, _), at, hint = page.running(), page.read_stage(), import_hint(page)
        self._recorder.event("killed")
        self._remove(worker)
        for flight in reversed(worker.flights.values()):
            if flight.given_up_at is None:
                self._replay(flight.job)
            else:
                if flight.job.identity == running:
                    flight.stage = at
                self._time_out(flight, now - flight.begun_at, hint)

    def _replay(self, job: PoolJob) -> None:
        self._recorder.event("replayed")
        self._queue.appendleft(job)

    def _time_out(self, flight: _Flight, elapsed: float, hint: str = "") -> None:
        at = flight.stage or "start"
        reason = f"{flight.job.name}: undecided after {self._allowed(flight):g} s, at stage {at!r}{hint}"
        self._fail(flight.job, timeout(reason), elapsed)

    def _fail(self, job: PoolJob, verdict: Verdict, seconds: float) -> None:
        self._finish(job, [verdict] * len(job.completions), seconds, False)

    def _allowed(self, flight: _Flight) -> float:
        return self._limits.deadline_s * (2 if flight.extended else 1)

    def _overdue_at(self, flight: _Flight) -> float:
        return flight.begun_at + self._allowed(flight)

    def _extend(self, worker: AsyncWorker, flight: _Flight) -> bool:
        """Give the same time once more to a call whose worker the machine has kept from a processor."""
        used = worker.handle.processor_ns()
        if flight.extended or used is None or worker.handle.asleep():
            return False
        flight.extended = (used - flight.processor_ns) * 1e-9 < STARVED_SHARE * self._limits.deadline_s
        return flight.extended

    def _remove(self, worker: AsyncWorker) -> None:
        self._selector.unregister(worker.handle.connection)
        self.workers.remove(worker)
        self._forks.end(worker.handle)
