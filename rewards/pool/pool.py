"""Run verifiers in worker processes that are killed at a deadline, so that no verifier can stall the run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rewards.build import VerifierSpec
from rewards.pool.busy_clock import Busy
from rewards.pool.jobs import PoolJob
from rewards.pool.limits import PoolLimits
from rewards.pool.stats import PoolStats, Recorder, Tally
from rewards.pool.supervisor import Supervisor
from rewards.verdict import Verdict, error
from rewards.verifier import Verifier

# A call: the verifier's name, the completion, the reference, the row's columns.
Call = tuple[str, str, Any, Mapping[str, Any]]


class VerifierPool:
    """Runs verifiers in worker processes under a hard deadline.

    Args:
        verifiers: specs, or verifiers by name. Verifiers that are objects must be picklable and importable by another
            process.
        workers: number of processes that work at the same time; default: the number of usable cores.
        deadline_s: seconds that one call may take after it starts. At the deadline the worker is killed and the
            verdict is `timeout`; its reason names the verifier and the stage. If other programs kept the call from a
            processor for nine tenths of that time, the call gets the same time once more.
        memory_mib: address space of one worker in MiB; None means no limit. A call that needs more gets the verdict
            `error`.
        replays: number of times that a call is given to another worker after its worker crashed or was killed by
            another program; if the last worker dies too, the verdict is `error`.
        spares: number of workers beyond `workers` that may be started while others hang, so that other calls do not
            wait; default: twice `workers`.
        start_s: seconds that starting the processes and importing the verifiers may take.
        overlap: number of calls of async verifiers that overlap in one worker. Async verifiers have separate workers,
            at most `workers` of them, each with one event loop. A call is cancelled at its deadline. If the call does
            not end then, its worker is killed and the worker's other calls are given to another worker.

    The pool never forks the calling process. Its workers import nothing but the verifiers, ignore Ctrl-C, and die with
    the process that made the pool. One thread supervises the workers and resolves the futures, so callbacks of
    the futures must be short.

    Raises:
        ValueError: a verifier cannot be built or sent, or a setting is out of range.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier | VerifierSpec] | Iterable[VerifierSpec],
        *,
        workers: int | None = None,
        deadline_s: float = 5.0,
        memory_mib: int | None = 2048,
        replays: int = 2,
        spares: int | None = None,
        start_s: float = 60.0,
        overlap: int = 64,
    ) -> None:
        named = dict(verifiers) if isinstance(verifiers, Mapping) else {spec.name: spec for spec in verifiers}
        limits = PoolLimits.checked(workers, deadline_s, memory_mib, replays, spares, start_s, overlap)
        if not named:
            raise ValueError("a verifier pool needs at least one verifier")
        self._names = frozenset(named)
        self._queue: deque[PoolJob] = deque()
        self._async_queue: deque[PoolJob] = deque()
        self._lock = threading.Lock()
        self._next_identity = 0
        self._recorder = Recorder(named)
        self._closed = False
        self._supervisor = Supervisor(named, limits, self._queue, self._async_queue, self._recorder)

    def judges_groups(self, name: str) -> bool:
        """Whether the verifier takes all completions of a prompt at once, from `submit_group`.

        The other methods call such a verifier with a group of one completion.
        """
        return name in self._supervisor.kinds.groups

    def submit(self, name: str, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Future[Verdict]:
        """Queue one call; the future always gets a Verdict, whatever the verifier does.

        Raises:
            ValueError: the pool has no verifier of that name.
            RuntimeError: the pool is closed.
        """
        return self.submit_many([(name, completion, reference, prompt)])[0]

    def submit_many(self, calls: Iterable[Call]) -> list[Future[Verdict]]:
        """Queue several calls `(name, completion, reference, prompt)` at once; return a future for each call, in order.

        Raises:
            ValueError: the pool has no verifier of that name; in this case no call is queued.
            RuntimeError: the pool is closed, or its supervising thread has failed.
        """
        jobs = self._queue_jobs(
            [(name, (completion,), reference, prompt, None) for name, completion, reference, prompt in calls]
        )
        return [job.futures[0] for job in jobs]

    def submit_group(
        self,
        name: str,
        completions: Sequence[str],
        reference: Any,
        prompt: Mapping[str, Any],
        lists: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Future[Verdict]]:
        """Queue one call of a group verifier, with one deadline; return a future for each completion, in order.

        Args:
            name: name of the verifier.
            completions: all completions of one prompt.
            reference: reference answer of the row.
            prompt: columns of the row.
            lists: columns with a value for each completion.

        Raises:
            ValueError: the pool has no verifier of that name, the verifier judges completions one by one, or a column
                does not have a value for each completion.
            RuntimeError: the pool is closed, or its supervising thread has failed.
        """
        columns = dict(lists or {})
        if name in self._names and not self.judges_groups(name):
            raise ValueError(f"verifier {name!r} judges completions one by one, not groups; use submit_many")
        for column, values in columns.items():
            if len(values) != len(completions):
                raise ValueError(f"column {column!r} has {len(values)} values for {len(completions)} completions")
        if not completions:
            return []
        (job,) = self._queue_jobs([(name, tuple(completions), reference, prompt, columns)])
        return list(job.futures)

    def _queue_jobs(
        self, calls: list[tuple[str, tuple[str, ...], Any, Mapping[str, Any], Mapping[str, Sequence[Any]] | None]]
    ) -> list[PoolJob]:
        for name, *_ in calls:
            if name not in self._names:
                raise ValueError(f"no verifier {name!r} in this pool; it has {', '.join(sorted(self._names))}")
        asynchronous = self._supervisor.kinds.asynchronous
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            if self._supervisor.crash:
                raise RuntimeError(self._supervisor.crash)
            first = self._next_identity
            self._next_identity += len(calls)
            jobs = [PoolJob(first + offset, *call) for offset, call in enumerate(calls)]
            self._queue.extend(job for job in jobs if job.name not in asynchronous)
            self._async_queue.extend(job for job in jobs if job.name in asynchronous)
        self._supervisor.wake()
        return jobs

    def stats(self) -> PoolStats:
        """Return the counts and latencies so far, for each verifier and for the pool."""
        return self._recorder.snapshot(queued=len(self._queue) + len(self._async_queue))

    def take_recent(self) -> dict[str, Tally]:
        """Counts by verifier since the last call of this method."""
        return self._recorder.take_recent()

    def take_busy(self) -> dict[str, Busy]:
        """Intervals, since the last call of this method, in which a worker was judging. The only key is `verifiers`."""
        return {"verifiers": self._recorder.busy.take()}

    def close(self) -> None:
        """Kill the workers; calls without a verdict get an `error`. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._supervisor.stop()
        for job in [*self._queue, *self._async_queue]:
            if job.start():
                for future in job.futures:
                    if not future.done():
                        future.set_result(error("the verifier pool was closed before this verdict"))
        self._queue.clear()
        self._async_queue.clear()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
