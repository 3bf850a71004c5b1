"""The source of a pool's workers: a nursery, replaced when it dies. If its successors die too, the pool gives up."""

from __future__ import annotations

from collections.abc import Callable

from rewards.pool.processes import Kinds, NurseryError, WorkerNursery, WorkerProcess
from rewards.pool.stats import Recorder

# After this many workers or nurseries in a row that die before they can work, the pool gives up.
_MOST_FAILED_STARTS = 4


class Forks:
    """Forks workers and ends them; used by the supervising thread alone.

    Args:
        setup: verifiers and limits for the nursery (`pack_setup`).
        start_s: seconds that a nursery may take to come up.
        recorder: counts the workers.
        bury_all: called when the nursery has died, and all workers with it.
    """

    def __init__(self, setup: bytes, start_s: float, recorder: Recorder, bury_all: Callable[[], None]) -> None:
        self._setup, self._start_s, self._recorder, self._bury_all = setup, start_s, recorder, bury_all
        self._failed_starts = 0
        self.nursery: WorkerNursery | None = None
        # Why no worker can be forked any more; empty while forking works.
        self.broken = ""

    def start(self) -> Kinds:
        """Start the nursery; return the kinds of verifiers that it has built.

        Raises:
            NurseryError: the nursery did not come up.
        """
        self.nursery = WorkerNursery(self._setup, self._start_s)
        return self.nursery.kinds

    def fork(self, asynchronous: bool = False) -> WorkerProcess | None:
        """Fork a worker; None when the nursery has died, in which case it is replaced."""
        assert self.nursery is not None
        try:
            worker = self.nursery.fork(asynchronous)
        except NurseryError as problem:
            self._renew(str(problem))
            return None
        self._recorder.event("started")
        return worker

    def end(self, worker: WorkerProcess) -> None:
        """Kill and reap a worker."""
        assert self.nursery is not None
        self.nursery.end(worker)

    def came_up(self, alive: bool) -> None:
        """Note that a worker can work, or that it died before it could."""
        if alive:
            self._failed_starts = 0
        else:
            self._count_failed_start("see its message on standard error; is memory_mib too small?")

    def stop(self) -> None:
        """Kill the nursery, and with it every worker."""
        if self.nursery is not None:
            self.nursery.stop()

    def _renew(self, problem: str) -> None:
        assert self.nursery is not None
        self._count_failed_start(problem)
        self.nursery.stop()
        self._bury_all()
        try:
            self.start()
        except NurseryError as again:
            self.broken = str(again)

    def _count_failed_start(self, problem: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MOST_FAILED_STARTS:
            self.broken = f"verifier workers die before they can work: {problem}"
