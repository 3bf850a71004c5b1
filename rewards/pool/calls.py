"""Calls of ordinary verifiers. A worker runs one call at a time, and is killed at the deadline of the call."""

from __future__ import annotations

import logging
import selectors
import time
from collections import deque

from rewards.pool.batches import next_batch
from rewards.pool.forks import Forks
from rewards.pool.jobs import PoolJob
from rewards.pool.limits import PoolLimits
from rewards.pool.processes import flush, import_hint
from rewards.pool.results import Results
from rewards.pool.slow_calls import SlowCalls, keep_back
from rewards.pool.stats import Recorder
from rewards.pool.wire import ProtocolError, read_verdict
from rewards.pool.worker_handle import Busy, Free, Pace, Sent, Spent, Starting, WorkerHandle
from rewards.verdict import error, timeout

logger = logging.getLogger(__name__)

# Seconds for which a surplus worker must be free before it is ended. Until then, it can be used without a new fork.
_SURPLUS_S = 1.0

# Number of times that a call may be sent to a worker that is dead already, until such a death counts against the call.
_MOST_UNDELIVERED = 20


class Calls:
    """The workers of ordinary verifiers; used by the supervising thread alone.

    Args:
        limits: settings of the pool.
        queue: calls that were not given to a worker yet.
        recorder: counts what happens.
        selector: reports which connections are ready; the data of each entry is the `WorkerHandle`.
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
        self._slow_calls = SlowCalls(limits, recorder)
        self.workers: list[WorkerHandle] = []

    def balance(self) -> None:
        """Start workers until the pool has enough workers that are not stalled; end surplus workers."""
        while (
            self._capacity() < self._limits.workers
            and len(self.workers) < self._limits.workers + self._limits.spares
            and not self._forks.broken
        ):
            if process := self._forks.fork():
                worker = WorkerHandle(process)
                self.workers.append(worker)
                self._selector.register(process.connection, selectors.EVENT_READ, worker)
        surplus = self._capacity() - self._limits.workers
        if surplus > 0:
            longest = time.monotonic() - _SURPLUS_S
            free = [each for each in self.workers if isinstance(each.state, Free) and each.state.since < longest]
            for worker in free[:surplus]:
                self._remove(worker)

    def dispatch(self) -> None:
        """Give queued calls to the workers that may take calls."""
        working = self._working()
        for worker in self.workers:
            if not worker.takes_calls:
                continue
            was_free = isinstance(worker.state, Free)
            if was_free and working >= self._limits.workers:
                continue
            self._give(worker)
            working += was_free and isinstance(worker.state, Busy)
            if not self._queue:
                break
        keep_back(self.workers, others=bool(self._queue) or self._working() > 0)

    def on_event(self, worker: WorkerHandle, events: int) -> None:
        """Read from or write to a connection that is ready."""
        if worker not in self.workers:
            return  # an earlier event of this round has ended the worker
        if events & selectors.EVENT_WRITE:
            flush(self._selector, worker.process, worker)
        if events & selectors.EVENT_READ:
            self._hear(worker)

    def patience(self, now: float) -> float:
        """Seconds until the next check is needed if no worker sends anything."""
        waits = [5.0]
        for worker in self.workers:
            match worker.state:
                case Busy() as busy:
                    waits.append(self._slow_calls.next_look(worker, busy) - now)
                case Starting():
                    waits.append(worker.process.started_at + self._limits.start_s - now)
        return max(0.0, min(waits))

    def watch(self) -> None:
        """Kill workers at the deadline of their call, and take back the calls that wait behind a slow call."""
        now = time.monotonic()
        for worker in list(self.workers):
            match worker.state:
                case Starting() if now - worker.process.started_at > self._limits.start_s:
                    self.bury(worker)
                case Busy() as busy if now >= self._slow_calls.next_look(worker, busy):
                    if now - busy.since > self._slow_calls.allowed(worker, busy):
                        self._end_overdue(worker, busy, now - busy.since)
                    else:
                        pace = self._slow_calls.look(worker, busy, now)
                        self._queue.extendleft(reversed(worker.slow_to(pace)))

    def bury(self, worker: WorkerHandle, cause: str = "") -> None:
        """End a worker that died by itself. Replay its running call a few times, and queue its other calls again."""
        stage = worker.process.page.read_stage()
        self._recorder.event("died")
        logger.warning("worker %d died at stage %r%s", worker.process.pid, stage, f": {cause}" if cause else "")
        if isinstance(worker.state, Starting):
            self._forks.came_up(False)
        delivered = not isinstance(worker.state, Busy) or worker.got_the_call()
        current = self._remove(worker)
        if current is None or current.ghost:
            return
        job = current.job
        if not delivered and job.undelivered < _MOST_UNDELIVERED and not cause:
            # The worker was dead before the call reached it, so the call has no part in this death.
            job.undelivered += 1
            self._queue.appendleft(job)
            return
        job.deaths += 1
        if job.deaths <= self._limits.replays and not cause:
            self._recorder.event("replayed")
            self._queue.appendleft(job)
            return
        why = cause or f"its worker died {job.deaths} times"
        self._results.fail(job, error(f"{job.name}: {why}, at stage {stage!r}"))

    def bury_all(self) -> None:
        """Remove all workers and replay their calls: the nursery died, and the workers died with it."""
        for worker in list(self.workers):
            self.bury(worker)

    def end_all(self) -> None:
        """End every worker, and put the unanswered calls of the workers back into the queue."""
        for worker in list(self.workers):
            current = self._remove(worker)
            if current is not None and not current.ghost:
                self._queue.appendleft(current.job)

    def _capacity(self) -> int:
        return sum(worker.is_capacity for worker in self.workers)

    def _working(self) -> int:
        return sum(worker.works for worker in self.workers)

    def _give(self, worker: WorkerHandle) -> None:
        while jobs := next_batch(self._queue, self._limits.workers, self._recorder):
            refused = worker.give(jobs)
            for job, reason in refused:
                self._results.fail(job, error(reason))
            if len(refused) < len(jobs):
                flush(self._selector, worker.process, worker)
                return

    def _hear(self, worker: WorkerHandle) -> None:
        data = worker.process.receive()
        if data is None:
            return
        if not data:
            self.bury(worker)
            return
        try:
            for reply in worker.process.inbox.feed(data):
                self._take(worker, reply)
                if isinstance(worker.state, Spent):
                    self._remove(worker)
                    return
        except ProtocolError as problem:
            self.bury(worker, f"its worker sent {problem}")

    def _take(self, worker: WorkerHandle, reply: list[object]) -> None:
        match worker.state:
            case Starting() if reply[0] == "ready":
                worker.came_up()
                self._forks.came_up(True)
            case Busy() as busy if reply == ["skipped", busy.current.batch] and busy.pace >= Pace.ALONE:
                self._queue.extendleft(worker.skipped(busy.current.batch))
            case Busy() as busy if reply[0] == busy.current.job.identity and len(reply) == 5:
                self._take_verdict(worker, busy.current, reply)
            case _:
                raise ProtocolError("an answer without a call")

    def _take_verdict(self, worker: WorkerHandle, current: Sent, reply: list[object]) -> None:
        current.verdicts.append(read_verdict(reply[1]))
        job = current.job
        if len(current.verdicts) < len(job.completions):
            return
        if not current.ghost:
            seconds, processor = self._believable(reply[2]), self._believable(reply[3])
            self._recorder.finished(job.name, seconds, processor)
            self._results.finish(job, current.verdicts, seconds, bool(reply[4]))
        worker.answered()

    def _believable(self, seconds: object) -> float:
        """The duration that a worker reported, limited to the possible range."""
        return min(max(float(seconds), 0.0), self._limits.deadline_s) if isinstance(seconds, (int, float)) else 0.0

    def _end_overdue(self, worker: WorkerHandle, busy: Busy, elapsed: float) -> None:
        self._hear(worker)  # the answer may have arrived without being read yet
        if worker.state is not busy or self._slow_calls.extend(worker, busy):
            return
        stage, hint = worker.process.page.read_stage(), import_hint(worker.process.page)
        allowed = self._slow_calls.allowed(worker, busy)
        self._recorder.event("killed")
        current = self._remove(worker)
        if current is not None and not current.ghost:
            after = f"undecided after {allowed:g} s"
            logger.debug("worker %d is killed: %s is %s", worker.process.pid, current.job.name, after)
            reason = f"{current.job.name}: {after}, at stage {stage!r}{hint}"
            self._results.fail(current.job, timeout(reason), elapsed)

    def _remove(self, worker: WorkerHandle) -> Sent | None:
        """End a worker and put the calls that it had not begun back into the queue; return the call that it ran."""
        self._selector.unregister(worker.process.connection)
        self.workers.remove(worker)
        sent = worker.end()
        self._forks.end(worker.process)
        self._queue.extendleft(reversed([entry.job for entry in sent[1:] if not entry.ghost]))
        return sent[0] if sent else None
