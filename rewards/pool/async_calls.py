"""Calls of async verifiers: one worker runs many calls at the same time, and each call has its own deadline."""

from __future__ import annotations

import math
import pickle
import selectors
import time
from collections import deque

from rewards.pool.async_handle import AsyncWorker, Flight
from rewards.pool.async_worker import CANCEL, RUN
from rewards.pool.forks import Forks
from rewards.pool.jobs import PoolJob, pack
from rewards.pool.limits import PoolLimits
from rewards.pool.processes import flush, import_hint
from rewards.pool.results import Results
from rewards.pool.slow_calls import STARVED_SHARE
from rewards.pool.stats import Recorder
from rewards.pool.wire import ProtocolError, read_verdict
from rewards.verdict import error, timeout

# Seconds within which a cancelled call must end. If it does not end in time, its worker is killed.
_GRACE_S = 1.0
# Seconds between two checks of calls that are overdue because another call blocks the loop.
_LOOK_S = 0.05


class AsyncCalls:
    """The workers of async verifiers; used by the supervising thread alone.

    The pool may have up to `limits.workers` async workers in addition to the workers of ordinary verifiers, because
    async workers are mostly idle. The first worker takes calls while other workers start.

    Args:
        limits: settings of the pool.
        queue: calls that were not given to a worker yet.
        recorder: counts what happens.
        selector: reports which connections are ready; the data of each entry is the `AsyncWorker`.
        forks: source of workers.
        results: receives the verdicts.
    """

    def __init__(
        self,
        limits: PoolLimits,
        queue: deque[PoolJob],
        recorder: Recorder,
        selector: selectors.BaseSelector,
        forks: Forks,
        results: Results,
    ) -> None:
        self._limits, self._queue, self._recorder, self._selector = limits, queue, recorder, selector
        self._forks, self._results = forks, results
        self.workers: list[AsyncWorker] = []

    def dispatch(self) -> None:
        """Start workers if more are needed, and give each queued call to the worker with the fewest calls."""
        while self._wants_worker():
            process = self._forks.fork(asynchronous=True)
            if process is None:
                break
            worker = AsyncWorker(process)
            self.workers.append(worker)
            self._selector.register(process.connection, selectors.EVENT_READ, worker)
        while self._give_out():
            pass  # some calls were refused, so the workers can take other calls

    def _give_out(self) -> bool:
        """Give each worker as many calls as it can take; return True if some of the calls could not be sent."""
        given: dict[AsyncWorker, list[PoolJob]] = {}
        takers = [worker for worker in self.workers if worker.ready and not worker.is_stuck]
        while self._queue and takers:
            worker = min(takers, key=lambda each: len(each.flights))
            if len(worker.flights) >= self._limits.overlap:
                break
            job = self._queue.popleft()
            if job.start():
                flight = Flight(job, time.monotonic(), worker.process.processor_ns() or 0)
                worker.flights[job.identity] = flight
                worker.look_at = min(worker.look_at, self._overdue_at(flight))
                given.setdefault(worker, []).append(job)
        refused = False
        for worker, jobs in given.items():
            packed = pack(RUN, jobs)
            for job, reason in packed.refused:
                refused = True
                worker.remove(worker.flights[job.identity])
                self._results.fail(job, error(reason))
            if packed.jobs:
                worker.process.send(packed.body)
                flush(self._selector, worker.process, worker)
        return refused

    def on_event(self, worker: AsyncWorker, events: int) -> None:
        """Read from or write to a connection that is ready."""
        if worker not in self.workers:
            return  # an earlier event of this round has ended the worker
        if events & selectors.EVENT_WRITE:
            flush(self._selector, worker.process, worker)
        if events & selectors.EVENT_READ:
            self._hear(worker)

    def patience(self, now: float) -> float:
        """Seconds until the next check is needed if no worker sends anything."""
        # If calls are queued and there is no worker, a fork has failed and must be tried again at once.
        waits = [0.0 if self._queue and not self.workers else 5.0]
        for worker in self.workers:
            if not worker.ready:
                waits.append(worker.process.started_at + self._limits.start_s - now)
            waits.append(worker.look_at - now)
        return max(0.0, min(waits))

    def watch(self) -> None:
        """Cancel calls at their deadline; kill workers with a call that does not end after it was cancelled."""
        now = time.monotonic()
        for worker in list(self.workers):
            if not worker.ready:
                if now - worker.process.started_at > self._limits.start_s:
                    self.bury(worker)
            elif now >= worker.look_at:
                self._look(worker, now)

    def _look(self, worker: AsyncWorker, now: float) -> None:
        flights = worker.flights
        late = [flight for flight in flights.values() if flight.given_up_at is None and now > self._overdue_at(flight)]
        if late:
            self._hear(worker)  # the answer may have arrived without being read yet
            if worker not in self.workers:
                return
        overdue = [flight for flight in late if flight.job.identity in flights and not self._extend(worker, flight)]
        holder = worker.holder(now)
        # While one call blocks the loop, no other call can end, so only the blocking call is cancelled.
        cancelled = [flight for flight in overdue if holder is None or holder is flight]
        if cancelled:
            for flight in cancelled:
                flight.given_up_at = now
                worker.given_up.add(flight.job.identity)
            worker.process.send(pickle.dumps((CANCEL, [flight.job.identity for flight in cancelled])))
            flush(self._selector, worker.process, worker)
        if any(now > (flights[each].given_up_at or now) + _GRACE_S for each in worker.given_up):
            self._kill(worker, now)
            return
        ends = (
            self._overdue_at(flight) if flight.given_up_at is None else flight.given_up_at + _GRACE_S
            for flight in flights.values()
        )
        worker.look_at = min((end if end > now else now + _LOOK_S for end in ends), default=math.inf)

    def bury(self, worker: AsyncWorker, cause: str = "") -> None:
        """End a worker that died by itself, and replay its calls.

        The death counts against the call that had the processor. If that call is not known, the death counts against
        all calls of the worker.
        """
        identity, _ = worker.process.page.running()
        stage = worker.process.page.read_stage()
        self._recorder.event("died")
        self._remove(worker)
        if not worker.ready:
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
                self._results.fail(job, error(f"{job.name}: {why}, at stage {stage!r}"))

    def bury_all(self) -> None:
        """Remove all workers and replay their calls: the nursery died, and the workers died with it."""
        for worker in list(self.workers):
            self.bury(worker)

    def end_all(self) -> None:
        """End every worker, and put the unanswered calls of the workers back into the queue."""
        for worker in list(self.workers):
            self._remove(worker)
            self._queue.extendleft(reversed([flight.job for flight in worker.flights.values()]))

    def _wants_worker(self) -> bool:
        calls = len(self._queue) + sum(len(worker.flights) for worker in self.workers)
        active = sum(not worker.is_stuck for worker in self.workers)
        has_room = len(self.workers) < self._limits.workers + self._limits.spares
        return bool(self._queue) and active < min(self._limits.workers, calls) and has_room

    def _hear(self, worker: AsyncWorker) -> None:
        data = worker.process.receive()
        if data is None:
            return
        if not data:
            self.bury(worker)
            return
        try:
            for reply in worker.process.inbox.feed(data):
                self._take(worker, reply)
        except ProtocolError as problem:
            self.bury(worker, f"its worker sent {problem}")

    def _take(self, worker: AsyncWorker, reply: list[object]) -> None:
        if reply[0] == "ready":
            worker.ready = True
            self._forks.came_up(True)
            return
        kind, identity = reply[:2] if reply[0] in ("stage", "cancelled") and len(reply) > 1 else ("verdict", reply[0])
        flight = worker.flights.get(identity) if isinstance(identity, int) else None
        if flight is None:
            raise ProtocolError("an answer without a call")
        if kind == "stage":
            flight.stage = str(reply[-1])[:48]
        elif kind == "cancelled":
            worker.remove(flight)
            self._time_out(flight, time.monotonic() - flight.begun_at)
        else:
            self._take_verdict(worker, flight, reply)

    def _take_verdict(self, worker: AsyncWorker, flight: Flight, reply: list[object]) -> None:
        if len(reply) != 5:
            raise ProtocolError("an answer without its five fields")
        flight.verdicts.append(read_verdict(reply[1]))
        if len(flight.verdicts) < len(flight.job.completions):
            return
        worker.remove(flight)
        elapsed = time.monotonic() - flight.begun_at
        seconds = min(max(float(reply[2]), 0.0), elapsed) if isinstance(reply[2], (int, float)) else elapsed
        if flight.given_up_at is not None and seconds > self._allowed(flight):
            self._time_out(flight, elapsed)
        else:
            self._results.finish(flight.job, flight.verdicts, seconds, bool(reply[4]))

    def _kill(self, worker: AsyncWorker, now: float) -> None:
        """End a worker after one of its cancelled calls did not end; replay the calls that were not cancelled."""
        page = worker.process.page
        (running, _), stage, hint = page.running(), page.read_stage(), import_hint(page)
        self._recorder.event("killed")
        self._remove(worker)
        for flight in reversed(worker.flights.values()):
            if flight.given_up_at is None:
                self._replay(flight.job)
            else:
                if flight.job.identity == running:
                    flight.stage = stage
                self._time_out(flight, now - flight.begun_at, hint)

    def _replay(self, job: PoolJob) -> None:
        self._recorder.event("replayed")
        self._queue.appendleft(job)

    def _time_out(self, flight: Flight, elapsed: float, hint: str = "") -> None:
        stage = flight.stage or "start"
        reason = f"{flight.job.name}: undecided after {self._allowed(flight):g} s, at stage {stage!r}{hint}"
        self._results.fail(flight.job, timeout(reason), elapsed)

    def _allowed(self, flight: Flight) -> float:
        return self._limits.deadline_s * (2 if flight.extended else 1)

    def _overdue_at(self, flight: Flight) -> float:
        return flight.begun_at + self._allowed(flight)

    def _extend(self, worker: AsyncWorker, flight: Flight) -> bool:
        """Give a call the same time once more if its worker got too little processor time."""
        used = worker.process.processor_ns()
        if flight.extended or used is None or worker.process.asleep():
            return False
        flight.extended = (used - flight.processor_ns) * 1e-9 < STARVED_SHARE * self._limits.deadline_s
        return flight.extended

    def _remove(self, worker: AsyncWorker) -> None:
        self._selector.unregister(worker.process.connection)
        self.workers.remove(worker)
        self._forks.end(worker.process)
