"""Verifiers run in worker processes that are killed at their deadline, so that nothing can stall the run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rewards.build import VerifierSpec
from rewards.busy_clock import Busy
from rewards.pool_limits import Limits
from rewards.pool_stats import PoolStats, Recorder, Tally
from rewards.supervisor import Supervisor
from rewards.verdict import Verdict, error
from rewards.verifier import Verifier


@dataclass(slots=True, eq=False)
class Job:
    """One call of a verifier, from its submission until its future is resolved."""

    identity: int
    name: str
    completion: str
    reference: Any
    prompt: Mapping[str, Any]
    future: Future[Verdict] = field(default_factory=Future)
    deaths: int = 0
    begun: bool = False

    def start(self) -> bool:
        """Mark as begun; False where its caller has cancelled it."""
        if not self.begun:
            self.begun = self.future.set_running_or_notify_cancel()
        return self.begun


class VerifierPool:
    """Runs verifiers in worker processes under a hard deadline.

    Args:
        verifiers: specs, or verifiers by name. Verifiers given as objects must be picklable and importable by
            another process.
        workers: processes that work at the same time; default: the number of usable cores.
        deadline_s: seconds that one call may take, counted from when the call starts. At the deadline its process
            is killed and the verdict is `timeout`, with the verifier's name and the stage it was at. A call that
            other programs have kept from a processor for nine tenths of that time gets as much once more.
        memory_mb: address space of one worker in MiB; None for no limit. Beyond it the verdict is `error`.
        replays: how often a call is given to another worker after its worker died under it (killed by someone
            else, crashed); after that the verdict is `error`.
        spares: workers beyond `workers` that may be started while others hang, so that they do not hold up the
            rest; default: twice `workers`.
        start_s: seconds that starting the processes and importing the verifiers may take.

    The pool never forks its own process, its workers import nothing but the verifiers, ignore Ctrl-C and die with
    the process that made the pool. One thread supervises; futures are resolved in it, so callbacks must be short.

    Raises:
        ValueError: a verifier that cannot be built or sent, or a setting out of range.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier | VerifierSpec] | Iterable[VerifierSpec],
        *,
        workers: int | None = None,
        deadline_s: float = 5.0,
        memory_mb: int | None = 2048,
        replays: int = 2,
        spares: int | None = None,
        start_s: float = 60.0,
    ) -> None:
        named = dict(verifiers) if isinstance(verifiers, Mapping) else {spec.name: spec for spec in verifiers}
        limits = Limits.checked(workers, deadline_s, memory_mb, replays, spares, start_s)
        if not named:
            raise ValueError("a verifier pool needs at least one verifier")
        self._names = frozenset(named)
        self._queue: deque[Job] = deque()
        self._lock = threading.Lock()
        self._next_identity = 0
        self._recorder = Recorder(named)
        self._closed = False
        self._supervisor = Supervisor(named, limits, self._queue, self._recorder)

    def submit(self, name: str, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Future[Verdict]:
        """Queue one call; the future always comes to a Verdict, whatever the verifier does.

        Raises:
            ValueError: no verifier of that name in this pool.
            RuntimeError: the pool is closed.
        """
        return self.submit_many([(name, completion, reference, prompt)])[0]

    def submit_many(self, calls: Iterable[tuple[str, str, Any, Mapping[str, Any]]]) -> list[Future[Verdict]]:
        """Queue several calls `(name, completion, reference, prompt)` at once; one future each, in order.

        Raises:
            ValueError: no verifier of that name in this pool; nothing is queued then.
            RuntimeError: the pool is closed, or its supervising thread has failed.
        """
        listed = list(calls)
        for name, *_ in listed:
            if name not in self._names:
                raise ValueError(f"no verifier {name!r} in this pool; it has {', '.join(sorted(self._names))}")
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            if self._supervisor.crash:
                raise RuntimeError(self._supervisor.crash)
            first = self._next_identity
            self._next_identity += len(listed)
            jobs = [Job(first + offset, *call) for offset, call in enumerate(listed)]
            self._queue.extend(jobs)
        self._supervisor.wake()
        return [job.future for job in jobs]

    def stats(self) -> PoolStats:
        """Counts and latencies so far, per verifier and for the pool."""
        return self._recorder.snapshot(queued=len(self._queue))

    def take_recent(self) -> dict[str, Tally]:
        """What was counted since this was last asked, by verifier."""
        return self._recorder.take_recent()

    def take_busy(self) -> dict[str, Busy]:
        """When some worker was at a verdict since this was last asked, under the name `verifiers`."""
        return {"verifiers": self._recorder.busy.take()}

    def close(self) -> None:
        """Kill the workers; calls not yet decided come to `error`. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._supervisor.stop()
        for job in [*self._supervisor.abandoned, *self._queue]:
            if job.start():
                job.future.set_result(error("the verifier pool was closed before this verdict"))
        self._queue.clear()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
