"""The thread that feeds the pool's workers, watches their deadlines and replaces them."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.adapt import describe
from rewards.build import VerifierSpec
from rewards.pool_stats import Recorder
from rewards.processes import Nursery, NurseryError, WorkerHandle, pack_setup
from rewards.verdict import Verdict, error, timeout
from rewards.verifier import Verifier
from rewards.wire import ProtocolError, read_verdict

if TYPE_CHECKING:  # pool.py imports this module
    from rewards.pool import Job

# A call that takes longer than this no longer has others waiting behind it in its worker.
_TAKE_BACK_S = 0.01
# A worker no longer counts as capacity after this share of the deadline, or once its call has used this many times
# the processor time of its verifier's 99th percentile (and more than the least).
_STALLED_SHARE, _UNUSUAL, _LEAST_UNUSUAL_S = 0.25, 3.0, 0.005
# Work sent ahead to one worker: enough to hide the round trip, little enough to share out evenly.
_BATCH_S, _BATCH_JOBS, _BATCH_CHARACTERS = 0.004, 64, 1 << 18
# Workers or nurseries that die one after the other before doing anything; then the pool gives up and says why.
_STILLBIRTHS = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The pool's settings, checked; see VerifierPool."""

    workers: int
    deadline_s: float
    memory_mb: int | None
    replays: int
    spares: int
    start_s: float

    @staticmethod
    def checked(
        workers: int | None, deadline_s: float, memory_mb: int | None, replays: int, spares: int | None, start_s: float
    ) -> Limits:
        """Fill in the defaults.

        Raises:
            ValueError: a setting out of range, with its value.
        """
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        extra = 2 * count if spares is None else spares
        for name, value, least in (
            ("workers", count, 1), ("deadline_s", deadline_s, 0.01), ("memory_mb", memory_mb or 64, 64),
            ("replays", replays, 0), ("spares", extra, 0), ("start_s", start_s, 0.1),
        ):  # fmt: skip
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
        return Limits(count, deadline_s, memory_mb, replays, extra, start_s)


class Supervisor:
    """Owns the processes; one thread, started here, does everything to them.

    Raises:
        ValueError: the verifiers could not be sent or built.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier | VerifierSpec],
        limits: Limits,
        queue: deque[Job],
        recorder: Recorder,
    ) -> None:
        self._limits, self._queue, self._recorder = limits, queue, recorder
        self._setup = pack_setup(verifiers, limits.memory_mb)
        self._workers: list[WorkerHandle] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._stopping = False
        self._broken = ""
        self._stillbirths = 0
        self._nursery: Nursery | None = None
        self._started = threading.Event()
        self._start_problem = ""
        self.abandoned: list[Job] = []
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
                self._nursery = Nursery(self._setup, self._limits.start_s)
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
        except BaseException as problem:
            # A mistake of ours. Nobody may wait for verdicts that will not come; the thread's hook prints the rest.
            self.crash = f"the verifier pool's supervisor failed: {describe(problem)}"
            raise
        finally:
            for worker in list(self._workers):
                self.abandoned += [entry.job for entry in worker.sent if not entry.ghost]
                self._remove(worker)
            if self._nursery is not None:
                self._nursery.stop()
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()
            while self.crash and (self.abandoned or self._queue):
                job = self.abandoned.pop() if self.abandoned else self._queue.popleft()
                self._finish(job, error(self.crash), 0.0, False)

    # Capacity

    def _balance(self) -> None:
        """Keep `workers` processes that are not stalled, within the spares; let go of those no longer needed."""
        while (
            self._active() < self._limits.workers
            and len(self._workers) < self._limits.workers + self._limits.spares
            and not self._broken
        ):
            self._spawn()
        active = self._active()
        for worker in list(self._workers):
            if active <= self._limits.workers:
                return
            if worker.ready and not worker.stalled and not worker.sent:
                self._remove(worker)
                active -= 1

    def _active(self) -> int:
        return sum(not worker.stalled for worker in self._workers)

    def _spawn(self) -> None:
        assert self._nursery is not None
        try:
            worker = self._nursery.fork()
        except NurseryError as problem:
            self._renew_nursery(str(problem))
            return
        self._recorder.event("started")
        self._workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _renew_nursery(self, problem: str) -> None:
        """The nursery died, and its workers with it: start another and replay what they had."""
        assert self._nursery is not None
        self._stillborn(problem)
        self._nursery.stop()
        for worker in list(self._workers):
            self._bury(worker)
        try:
            self._nursery = Nursery(self._setup, self._limits.start_s)
        except NurseryError as again:
            self._broken = str(again)

    def _stillborn(self, problem: str) -> None:
        self._stillbirths += 1
        if self._stillbirths >= _STILLBIRTHS:
            self._broken = f"verifier workers die before they can work: {problem}"

    def _remove(self, worker: WorkerHandle) -> None:
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        assert self._nursery is not None
        self._nursery.end(worker)

    # Giving out work

    def _dispatch(self) -> None:
        while self._broken and self._queue:
            self._finish(self._queue.popleft(), error(self._broken), 0.0, False)
        for worker in self._workers:
            if not worker.ready or worker.taken_back or worker.batches_in_flight() > 1:
                continue
            jobs = self._next_batch()
            if not jobs:
                return
            worker.give(jobs)
            self._flush(worker)

    def _next_batch(self) -> list[Job]:
        """The next few calls: about `_BATCH_S` seconds of work by each verifier's record, at least one."""
        jobs: list[Job] = []
        seconds, characters = 0.0, 0
        share = len(self._queue) // (2 * self._limits.workers) + 1
        while self._queue and len(jobs) < min(_BATCH_JOBS, share):
            job = self._queue.popleft()
            if not job.start():
                continue
            jobs.append(job)
            seconds += self._recorder.mean_seconds(job.name)
            characters += len(job.completion)
            if seconds > _BATCH_S or characters > _BATCH_CHARACTERS:
                break
        return jobs

    def _flush(self, worker: WorkerHandle) -> None:
        waiting = bool(worker.outgoing)
        try:
            done = worker.flush()
        except OSError:
            return  # it died; its end of the stream says so at the next look
        events = selectors.EVENT_READ if done else selectors.EVENT_READ | selectors.EVENT_WRITE
        if waiting:
            self._selector.modify(worker.connection, events, worker)

    # Hearing back

    def _listen(self) -> None:
        for key, events in self._selector.select(self._patience()):
            if key.data is None:
                self._wake_read.recv(4096)
                continue
            worker: WorkerHandle = key.data
            if worker not in self._workers:
                continue  # buried while this round of events was being worked through
            if events & selectors.EVENT_WRITE:
                self._flush(worker)
            if events & selectors.EVENT_READ:
                self._hear(worker)

    def _patience(self) -> float:
        """Seconds until something must be looked at even if nobody says anything."""
        now = time.monotonic()
        waits = [5.0]
        for worker in self._workers:
            if worker.sent:
                waits.append(worker.begun_at + self._limits.deadline_s - now)
                if not (worker.taken_back and worker.stalled):
                    waits.append(_TAKE_BACK_S)
            elif not worker.ready:
                waits.append(worker.begun_at + self._limits.start_s - now)
        return max(0.0, min(waits))

    def _hear(self, worker: WorkerHandle) -> None:
        try:
            data = worker.connection.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._bury(worker)
            return
        try:
            for reply in worker.inbox.feed(data):
                self._take(worker, reply)
        except ProtocolError as problem:
            self._bury(worker, f"its worker sent {problem}")

    def _take(self, worker: WorkerHandle, reply: list[object]) -> None:
        if reply[0] == "ready":
            worker.ready, self._stillbirths = True, 0
            return
        if reply[0] == "skipped" and worker.taken_back:
            # The first one was thought to be running and so was not taken back; it had not begun either.
            while worker.sent and worker.sent[0].batch == reply[1]:
                entry = worker.sent.popleft()
                if not entry.ghost:
                    self._queue.appendleft(entry.job)
        elif len(reply) == 5 and worker.sent and reply[0] == worker.sent[0].job.identity:
            verdict = read_verdict(reply[1])
            entry = worker.sent.popleft()
            if not entry.ghost:
                seconds, processor = self._believable(reply[2]), self._believable(reply[3])
                self._recorder.finished(entry.job.name, seconds, processor)
                self._finish(entry.job, verdict, seconds, bool(reply[4]))
        else:
            raise ProtocolError("an answer to nothing it was asked")
        worker.begin_next()

    def _believable(self, seconds: object) -> float:
        """A duration that a worker told, within what is possible."""
        return min(max(float(seconds), 0.0), self._limits.deadline_s) if isinstance(seconds, (int, float)) else 0.0

    def _finish(self, job: Job, verdict: Verdict, seconds: float, hit: bool) -> None:
        if job.start() and not job.future.done():
            self._recorder.verdict(job.name, verdict.status, seconds, hit)
            job.future.set_result(verdict)

    # Deadlines and deaths

    def _watch(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.sent:
                if not worker.ready and now - worker.begun_at > self._limits.start_s:
                    self._bury(worker)
                continue
            elapsed = now - worker.begun_at
            if elapsed > self._limits.deadline_s:
                self._kill_overdue(worker, elapsed)
            elif elapsed > _TAKE_BACK_S:
                if not worker.taken_back:
                    self._queue.extendleft(reversed(worker.take_back()))
                self._look_at_slow(worker, elapsed)

    def _look_at_slow(self, worker: WorkerHandle, elapsed: float) -> None:
        """Let others take over from a worker that waits, or that is out of the ordinary for its verifier.

        The latter goes on only where a processor is free: a few calls that spin must not slow all the others down.
        """
        if worker.stalled and (worker.idle or worker.waits):
            return  # it has been dealt with, and only its deadline is left
        waits, processor = worker.look()
        worker.waits = waits and not worker.page.works_elsewhere()
        worker.stalled = worker.stalled or worker.waits or elapsed > _STALLED_SHARE * self._limits.deadline_s
        usual = self._recorder.usual_processor_seconds(worker.sent[0].job.name)
        if not worker.idle and processor > max(_LEAST_UNUSUAL_S, _UNUSUAL * usual):
            worker.stalled = True
            worker.set_idle(True)

    def _kill_overdue(self, worker: WorkerHandle, elapsed: float) -> None:
        stage = worker.page.read_stage()
        entry = worker.sent.popleft()
        self._recorder.event("killed")
        self._remove(worker)
        self._requeue(worker)
        if not entry.ghost:
            reason = f"{entry.job.name}: undecided after {self._limits.deadline_s:g} s, at stage {stage!r}"
            self._finish(entry.job, timeout(reason), elapsed, False)

    def _bury(self, worker: WorkerHandle, cause: str = "") -> None:
        """A worker died on its own: replay the call it was at, some times, and give the others back."""
        stage = worker.page.read_stage()
        self._recorder.event("died")
        self._remove(worker)
        if not worker.ready:
            self._stillborn("see its message on standard error; is memory_mb too small?")
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
        self._finish(entry.job, error(f"{entry.job.name}: {why}, at stage {stage!r}"), 0.0, False)

    def _requeue(self, worker: WorkerHandle) -> None:
        """Put back what the worker had not begun; it counts as no try."""
        self._queue.extendleft(reversed([entry.job for entry in worker.sent if not entry.ghost]))
        worker.sent.clear()
