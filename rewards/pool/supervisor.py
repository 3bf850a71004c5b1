"""The thread that feeds the pool's workers, watches their deadlines and replaces them."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping

from rewards.build import VerifierSpec
from rewards.pool.async_calls import AsyncCalls, AsyncWorker
from rewards.pool.batches import next_batch
from rewards.pool.forks import Forks
from rewards.pool.jobs import PoolJob
from rewards.pool.limits import PoolLimits
from rewards.pool.processes import Kinds, NurseryError, WorkerHandle, flush, import_hint
from rewards.pool.setup import pack_setup
from rewards.pool.slow_calls import SlowCalls, keep_back
from rewards.pool.stats import Recorder
from rewards.pool.wire import ProtocolError, read_verdict
from rewards.raised import describe
from rewards.verdict import Verdict, error, timeout
from rewards.verifier import Verifier

# A call that takes longer than this no longer has others waiting behind it in its worker.
_TAKE_BACK_S = 0.01
# A worker beyond the number wanted is let go when it has had nothing to do for this long: until then it spares a fork.
_SURPLUS_S = 1.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the processes; one thread, started here, does everything to them.

    Raises:
        ValueError: the verifiers could not be sent or built.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier | VerifierSpec],
        limits: PoolLimits,
        queue: deque[PoolJob],
        async_queue: deque[PoolJob],
        recorder: Recorder,
    ) -> None:
        self._limits, self._queue, self._recorder = limits, queue, recorder
        self._async_queue = async_queue
        self._names = frozenset(verifiers)
        self.kinds = Kinds()
        self._slow_calls = SlowCalls(limits, recorder)
        self._forks = Forks(pack_setup(verifiers, limits.memory_mb), limits.start_s, recorder, self._bury_all)
        self._workers: list[WorkerHandle] = []
        self._selector = selectors.DefaultSelector()
        self._async = AsyncCalls(
            limits,
            async_queue,
            recorder,
            self._selector,
            self._forks,
            self._finish,
        )
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._stopping = False
        self._started = threading.Event()
        self._start_problem = ""
        self.abandoned: list[PoolJob] = []
        self.crash = ""
        self._thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._start_problem:
            self._thread.join()
            raise ValueError(f"the verifiers could not be started: {self._start_problem}")

    def wake(self) -> None:
        """There is new work, or it is time to stop."""
        # Where it fails, a wake-up is under way already, or the thread is gone.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def stop(self) -> None:
        """End the thread and every process."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            try:
                self.kinds = self._forks.start()
                logger.info("%d workers judge for %s", self._limits.workers, ", ".join(sorted(self._names)))
            except NurseryError as problem:
                self._start_problem = str(problem)
                return
            finally:
                self._started.set()
            while not self._stopping:
                self._balance()
                self._dispatch()
                self._listen()
                self._watch()
                self._async.watch()
        except BaseException as problem:
            # A mistake of ours. Nobody may wait for verdicts that will not come; the thread's hook prints the rest.
            self.crash = f"the verifier pool's supervisor failed: {describe(problem)}"
            raise
        finally:
            for worker in list(self._workers):
                self.abandoned += [entry.job for entry in worker.sent if not entry.ghost]
                self._remove(worker)
            self.abandoned += self._async.take_all()
            self._forks.stop()
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()
            while self.crash and (waiting := self.abandoned or self._queue or self._async_queue):
                self._fail(waiting.pop(), error(self.crash))

    # Capacity

    def _balance(self) -> None:
        """Keep `workers` processes that are not stalled, within the spares; let go of those no longer needed."""
        while (
            self._names != self.kinds.asynchronous
            and self._active() < self._limits.workers
            and len(self._workers) < self._limits.workers + self._limits.spares
            and not self._forks.broken
        ):
            self._spawn()
        surplus = self._active() - self._limits.workers
        if surplus <= 0:
            return
        now = time.monotonic()
        unused = [w for w in self._workers if w.ready and not w.sent and now - w.begun_at > _SURPLUS_S]
        for worker in unused[:surplus]:
            self._remove(worker)

    def _active(self) -> int:
        return sum(not worker.stalled for worker in self._workers)

    def _busy(self) -> int:
        return sum(bool(worker.sent) and not worker.stalled for worker in self._workers)

    def _spawn(self) -> None:
        if worker := self._forks.fork():
            self._workers.append(worker)
            self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _bury_all(self) -> None:
        """The nursery died, and its workers with it: replay what they had."""
        for worker in list(self._workers):
            self._bury(worker)
        for asynchronous in list(self._async.workers):
            self._async.bury(asynchronous)

    def _remove(self, worker: WorkerHandle) -> None:
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        self._forks.end(worker)

    # Giving out work

    def _dispatch(self) -> None:
        while self._forks.broken and (waiting := self._queue or self._async_queue):
            self._fail(waiting.popleft(), error(self._forks.broken))
        self._async.dispatch()
        busy = self._busy()
        for worker in self._workers:
            if not worker.ready or worker.taken_back or worker.batches_in_flight() > 1:
                continue
            if not worker.sent and busy >= self._limits.workers:
                continue
            jobs = next_batch(self._queue, self._limits.workers, self._recorder)
            if not jobs:
                break
            busy += not worker.sent
            worker.give(jobs)
            flush(self._selector, worker, worker)
        keep_back(self._workers, bool(self._queue) or self._busy() > 0)

    # Hearing back

    def _listen(self) -> None:
        for key, events in self._selector.select(self._patience()):
            if key.data is None:
                self._wake_read.recv(4096)
                continue
            if isinstance(key.data, AsyncWorker):
                self._async.on_event(key.data, events)
                continue
            worker: WorkerHandle = key.data
            if worker not in self._workers:
                continue  # buried while this round of events was being worked through
            if events & selectors.EVENT_WRITE:
                flush(self._selector, worker, worker)
            if events & selectors.EVENT_READ:
                self._hear(worker)

    def _patience(self) -> float:
        """Seconds until something must be looked at even if nobody says anything."""
        now = time.monotonic()
        waits = [self._async.patience(now)]
        for worker in self._workers:
            if worker.sent:
                waits.append(self._slow_calls.next_look(worker) - now)
            elif not worker.ready:
                waits.append(worker.begun_at + self._limits.start_s - now)
        return max(0.0, min(waits))

    def _hear(self, worker: WorkerHandle) -> None:
        data = worker.receive()
        if data is None:
            return
        if not data:
            self._bury(worker)
            return
        try:
            for reply in worker.inbox.feed(data):
                self._take(worker, reply)
        except ProtocolError as problem:
            self._bury(worker, f"its worker sent {problem}")
            return
        if worker.idle and not worker.unusual:
            # The system does not let it run as usual again (that takes a privilege), so the next call gets another.
            self._remove(worker)
            self._requeue(worker)

    def _take(self, worker: WorkerHandle, reply: list[object]) -> None:
        if reply[0] == "ready":
            worker.ready = True
            self._forks.came_up(True)
            return
        if reply[0] == "skipped" and worker.taken_back:
            # The first one was thought to be running and so was not taken back; it had not begun either.
            while worker.sent and worker.sent[0].batch == reply[1]:
                entry = worker.sent.popleft()
                if not entry.ghost:
                    self._queue.appendleft(entry.job)
        elif len(reply) == 5 and worker.sent and reply[0] == worker.sent[0].job.identity:
            entry = worker.sent[0]
            entry.got.append(read_verdict(reply[1]))
            if len(entry.got) < len(entry.job.completions):
                return  # of a group, whose verdicts come one by one
            worker.sent.popleft()
            if not entry.ghost:
                seconds, processor = self._believable(reply[2]), self._believable(reply[3])
                self._recorder.finished(entry.job.name, seconds, processor)
                self._finish(entry.job, entry.got, seconds, bool(reply[4]))
        else:
            raise ProtocolError("an answer to nothing it was asked")
        worker.begin_next()

    def _believable(self, seconds: object) -> float:
        """A duration that a worker told, within what is possible."""
        return min(max(float(seconds), 0.0), self._limits.deadline_s) if isinstance(seconds, (int, float)) else 0.0

    def _finish(self, job: PoolJob, verdicts: list[Verdict], seconds: float, hit: bool) -> None:
        if not job.start():
            return
        for future, verdict in zip(job.futures, verdicts, strict=True):
            if not future.done():
                self._recorder.verdict(job.name, verdict.status, seconds, hit)
                future.set_result(verdict)

    def _fail(self, job: PoolJob, verdict: Verdict, seconds: float = 0.0) -> None:
        """The same failure for each completion."""
        self._finish(job, [verdict] * len(job.completions), seconds, False)

    # Deadlines and deaths

    def _watch(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.sent:
                if not worker.ready and now - worker.begun_at > self._limits.start_s:
                    self._bury(worker)
                continue
            if now < self._slow_calls.next_look(worker):
                continue
            elapsed = now - worker.begun_at
            if elapsed > self._slow_calls.allowed(worker):
                self._end_overdue(worker, elapsed)
                continue
            self._slow_calls.look(worker, now)
            if not worker.taken_back and (worker.stalled or elapsed > _TAKE_BACK_S):
                self._queue.extendleft(reversed(worker.take_back()))

    def _end_overdue(self, worker: WorkerHandle, elapsed: float) -> None:
        begun_at = worker.begun_at
        self._hear(worker)  # the answer may be there, only not read yet
        if worker not in self._workers or worker.begun_at != begun_at or self._slow_calls.extend(worker):
            return
        stage, hint = worker.page.read_stage(), import_hint(worker.page)
        allowed = self._slow_calls.allowed(worker)
        entry = worker.sent.popleft()
        self._recorder.event("killed")
        logger.debug("worker %d is killed: %s is undecided after %g s", worker.pid, entry.job.name, allowed)
        self._remove(worker)
        self._requeue(worker)
        if not entry.ghost:
            after = f"undecided after {allowed:g} s"
            self._fail(entry.job, timeout(f"{entry.job.name}: {after}, at stage {stage!r}{hint}"), elapsed)

    def _bury(self, worker: WorkerHandle, cause: str = "") -> None:
        """A worker died on its own: replay the call it was at, some times, and give the others back."""
        stage = worker.page.read_stage()
        self._recorder.event("died")
        logger.warning("worker %d died at stage %r%s", worker.pid, stage, f": {cause}" if cause else "")
        self._remove(worker)
        if not worker.ready:
            self._forks.came_up(False)
        entry = worker.sent.popleft() if worker.sent else None
        self._requeue(worker)
        if entry is None or entry.ghost:
            return
        entry.job.deaths += 1
        if entry.job.deaths <= self._limits.replays and not cause:
            self._recorder.event("replayed")
            self._queue.appendleft(entry.job)
            return
        why = cause or f"its worker died {entry.job.deaths} times"
        self._fail(entry.job, error(f"{entry.job.name}: {why}, at stage {stage!r}"))

    def _requeue(self, worker: WorkerHandle) -> None:
        """Put back what the worker had not begun; it counts as no try."""
        self._queue.extendleft(reversed([entry.job for entry in worker.sent if not entry.ghost]))
        worker.sent.clear()
