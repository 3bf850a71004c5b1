"""The parent's view of one worker: five states, and the steps between them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from enum import IntEnum

from rewards.pool.jobs import PoolJob, pack
from rewards.pool.processes import WorkerProcess
from rewards.verdict import Verdict

# Seconds until the first check of a call, and the shortest time between two checks.
LOOK_S = 0.004


class Pace(IntEnum):
    """How long a call takes, and how harmful that is. The pace of a call only rises, but `HELD_BACK` can be undone."""

    FRESH = 0  # other calls may wait behind it
    ALONE = 1  # the calls behind it were taken back
    STALLED = 2  # the call waits or takes long: another worker is started in place of its worker
    UNUSUAL = 3  # the call has used far more processor time than calls of its verifier usually use
    HELD_BACK = 4  # the call is unusual, and its worker runs only on an otherwise idle processor


@dataclass(slots=True)
class Sent:
    """A call that was sent to a worker.

    Attributes:
        batch: number of the message in which the call was sent.
        job: the call.
        ghost: whether the call was taken back. The worker may still run the call, but the answer is ignored.
        verdicts: verdicts received so far; the worker sends the verdicts of a group one after the other.
    """

    batch: int
    job: PoolJob
    ghost: bool = False
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Starting:
    """The process was forked and has not reported yet."""


@dataclass(frozen=True, slots=True)
class Free:
    """The worker has no calls.

    Attributes:
        since: time of the worker's last answer, or of its fork, in seconds of the monotonic clock.
    """

    since: float


@dataclass(frozen=True, slots=True)
class Busy:
    """The worker runs the first of its calls.

    Attributes:
        sent: calls without an answer, never empty.
        since: time at which the first call began, in seconds of the monotonic clock.
        look_at: time of the next check of the first call.
        pace: pace of the first call.
        extended: whether the first call got its deadline a second time.
        used_ns: processor time at the last check, in nanoseconds; -1 before the first check.
    """

    sent: deque[Sent]
    since: float
    look_at: float
    pace: Pace
    extended: bool = False
    used_ns: int = -1

    @property
    def current(self) -> Sent:
        """The call that the worker runs."""
        return self.sent[0]


@dataclass(frozen=True, slots=True)
class Spent:
    """The worker was held back, and the system does not let it run as usual again. Another worker must replace it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker was killed, or has died."""


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """A worker process and its state. Each method that changes the state asserts the previous state.

    In the docstrings of the methods, `A -> B` means that the method changes the state from A to B.
    """

    process: WorkerProcess
    state: Starting | Free | Busy | Spent | Ended = Starting()
    last_batch: int = 0

    @property
    def is_capacity(self) -> bool:
        """Whether the worker counts as one of the workers that the pool keeps. It does if no long call occupies it."""
        return not (isinstance(self.state, Busy) and self.state.pace >= Pace.STALLED)

    @property
    def works(self) -> bool:
        """Whether the worker runs a call that does not take long."""
        return isinstance(self.state, Busy) and self.state.pace < Pace.STALLED

    @property
    def takes_calls(self) -> bool:
        """Whether the worker may get a batch. At most one batch may wait behind the running batch."""
        match self.state:
            case Free():
                return True
            case Busy(sent=sent, pace=Pace.FRESH):
                return sent[-1].batch == sent[0].batch
            case _:
                return False

    def came_up(self) -> None:
        """Starting -> Free."""
        assert isinstance(self.state, Starting), self.state
        self.state = Free(self.process.started_at)

    def give(self, jobs: list[PoolJob]) -> list[tuple[PoolJob, str]]:
        """Free or Busy -> Busy with one more batch; return the jobs that cannot be sent, each with the reason."""
        assert self.takes_calls, self.state
        packed = pack(self.last_batch + 1, jobs)
        if packed.jobs:
            self.last_batch += 1
            entries = [Sent(self.last_batch, job) for job in packed.jobs]
            if isinstance(self.state, Busy):
                self.state.sent.extend(entries)
            else:
                self._begin(deque(entries), Pace.FRESH)
            self.process.send(packed.body)
        return packed.refused

    def answered(self) -> None:
        """Busy -> Busy with the next call, Free, or Spent. Call this when the answer of the first call is complete."""
        busy = self._busy()
        busy.sent.popleft()
        if busy.pace is Pace.HELD_BACK and not self.process.set_idle(False):
            self.state = Spent()
        else:
            self._next(busy)

    def skipped(self, batch: int) -> list[PoolJob]:
        """Busy -> Busy or Free: the worker has dropped the rest of a batch that was taken back.

        A call that seemed to be running was not taken back. If the worker had not begun this call, return it, so that
        another worker can get it.
        """
        busy = self._busy()
        assert busy.pace >= Pace.ALONE, busy
        jobs = []
        while busy.sent and busy.sent[0].batch == batch:
            entry = busy.sent.popleft()
            if not entry.ghost:
                jobs.append(entry.job)
        self._next(busy)
        return jobs

    def slow_to(self, pace: Pace) -> list[PoolJob]:
        """Busy -> Busy at this pace, unless the pace is higher already; return the calls that are taken back."""
        busy = self._busy()
        if pace <= busy.pace:
            return []
        jobs = []
        if busy.pace is Pace.FRESH:
            self.process.page.revoke(self.last_batch, busy.current.job.identity)
            # The worker may be ahead of its answers that were read here. If the calls that it has begun were given to
            # another worker too, they would run twice. If it skips the last of them, `skipped` gives that call back.
            identities = [entry.job.identity for entry in busy.sent]
            begun, _ = self.process.page.begun()
            first = identities.index(begun) + 1 if begun in identities else 1
            for entry in list(busy.sent)[first:]:
                entry.ghost = True
                jobs.append(entry.job)
        self.state = replace(busy, pace=pace)
        return jobs

    def hold_back(self, others: bool) -> None:
        """Hold an unusual call back while there are other calls to run, and release it when there are none."""
        match self.state:
            case Busy(pace=Pace.UNUSUAL) as busy if others and self.process.set_idle(True):
                self.state = replace(busy, pace=Pace.HELD_BACK)
            case Busy(pace=Pace.HELD_BACK) as busy if not others and self.process.set_idle(False):
                self.state = replace(busy, pace=Pace.UNUSUAL)

    def got_the_call(self) -> bool:
        """Whether the worker has read from the socket, at least in part, the message with its first call."""
        return self._busy().current.batch <= self.process.page.received()

    def extend(self) -> None:
        """Busy -> Busy: the first call gets its deadline a second time."""
        busy = self._busy()
        assert not busy.extended, busy
        self.state = replace(busy, extended=True)

    def look(self) -> tuple[bool, float] | None:
        """Check the first call; return whether it waits, and the processor time that it has used, in seconds.

        A call waits if its process is asleep and has used no processor time since the last check. Return None if the
        worker is not running this call: it has not begun the call, or has already sent the answer.
        """
        busy = self._busy()
        identity, clock_then = self.process.page.begun()
        if identity != busy.current.job.identity:
            return None
        used = self.process.processor_ns()
        if used is None:
            return None
        self.state = replace(busy, used_ns=used)
        return used == busy.used_ns and self.process.asleep(), max(0, used - clock_then) * 1e-9

    def look_again(self, at: float) -> None:
        """Busy -> Busy: the next check is due at this time of the monotonic clock."""
        self.state = replace(self._busy(), look_at=at)

    def end(self) -> list[Sent]:
        """Any state -> Ended; return the worker's unanswered calls; the first is the call that the worker ran."""
        sent = list(self.state.sent) if isinstance(self.state, Busy) else []
        self.state = Ended()
        return sent

    def _busy(self) -> Busy:
        assert isinstance(self.state, Busy), self.state
        return self.state

    def _next(self, busy: Busy) -> None:
        if busy.sent:
            self._begin(busy.sent, min(busy.pace, Pace.ALONE))  # the calls that were taken back stay taken back
        else:
            self.state = Free(time.monotonic())

    def _begin(self, sent: deque[Sent], pace: Pace) -> None:
        now = time.monotonic()
        self.state = Busy(sent, now, now + LOOK_S, pace)
