"""Fork a pool's workers from a nursery. A dead nursery is replaced; if its successors die too, the pool gives up."""

from __future__ import annotations

from collections.abc import Callable

from rewards.pool.processes import Kinds, NurseryError, WorkerNursery, WorkerProcess
from rewards.pool.stats import Recorder

# The pool gives up after this many workers or nurseries in a row have died before they could work.
_MOST_FAILED_STARTS = 4


class Forks:
    """Forks workers and ends them; used by the supervising thread alone.

    Args:
        setup: verifiers and limits for the nursery (`pack_setup`).
        start_s: seconds that a nursery may take to start.
        recorder: counts the workers.
        bury_all: function that is called when the nursery has died; all workers have died with it.
    """

    def __init__(self, setup: bytes, start_s: float, recorder: Recorder, bury_all: Callable[[], None]) -> None:
        self._setup, self._start_s, self._recorder, self._bury_all = setup, start_s, recorder, bury_all
        self._failed_starts = 0
        self.nursery: WorkerNursery | None = None
        # The reason why no worker can be forked any more; empty while forking works.
        self.broken = ""

    def start(self) -> Kinds:
        """Start the nursery; return the kinds of verifiers that it has built.

        Raises:
            NurseryError: the nursery did not start.
        """
        self.nursery = WorkerNursery(self._setup, self._start_s)
        return self.nursery.kinds

    def fork(self, asynchronous: bool = False) -> WorkerProcess | None:
        """Fork and return a worker. If the nursery has died, replace the nursery and return None."""
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
        """Note that a worker can work (`alive`), or that it died before it could work."""
        if alive:
            self._failed_starts = 0
        else:
            self._count_failed_start("see its message on standard error; is memory_mib too small?")

    def stop(self) -> None:
        """Kill the nursery; every worker dies with it."""
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
