"""The thread that gives calls to the pool's workers, watches deadlines, and replaces workers."""

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
from rewards.pool.async_calls import AsyncCalls
from rewards.pool.async_handle import AsyncWorker
from rewards.pool.calls import Calls
from rewards.pool.forks import Forks
from rewards.pool.jobs import PoolJob
from rewards.pool.limits import PoolLimits
from rewards.pool.processes import Kinds, NurseryError
from rewards.pool.results import Results
from rewards.pool.setup import pack_setup
from rewards.pool.stats import Recorder
from rewards.raised import describe
from rewards.verdict import error
from rewards.verifier import Verifier

logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the pool's processes. It starts one thread, and only that thread uses the processes.

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
        self._queue, self._async_queue = queue, async_queue
        self._names, self._workers = frozenset(verifiers), limits.workers
        self.kinds = Kinds()
        self._forks = Forks(pack_setup(verifiers, limits.memory_mib), limits.start_s, recorder, self._bury_all)
        self._selector = selectors.DefaultSelector()
        self._results = Results(recorder)
        self.calls = Calls(limits, queue, recorder, self._selector, self._forks, self._results)
        self.async_calls = AsyncCalls(limits, async_queue, recorder, self._selector, self._forks, self._results)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._stopping = False
        self._started = threading.Event()
        self._start_problem = ""
        self.crash = ""
        self._thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._start_problem:
            self._thread.join()
            raise ValueError(f"the verifiers could not be started: {self._start_problem}")

    def wake(self) -> None:
        """Make the thread check its queues, and whether it must stop."""
        # Sending fails when a wake-up is under way already, or when the thread is gone.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def stop(self) -> None:
        """End the thread and every process; calls without a verdict stay in the queues."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            try:
                self.kinds = self._forks.start()
                logger.info("%d workers judge for %s", self._workers, ", ".join(sorted(self._names)))
            except NurseryError as problem:
                self._start_problem = str(problem)
                return
            finally:
                self._started.set()
            while not self._stopping:
                self._dispatch()
                self._listen()
                self.calls.watch()
                self.async_calls.watch()
        except BaseException as problem:
            # This is an error of this package. No more verdicts will come, so no caller may wait for one. The thread's
            # exception hook prints the error.
            self.crash = f"the verifier pool's supervisor failed: {describe(problem)}"
            raise
        finally:
            self.calls.end_all()
            self.async_calls.end_all()
            self._forks.stop()
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()
            while self.crash and (waiting := self._queue or self._async_queue):
                self._results.fail(waiting.pop(), error(self.crash))

    def _dispatch(self) -> None:
        if self._names != self.kinds.asynchronous:
            self.calls.balance()
        while self._forks.broken and (waiting := self._queue or self._async_queue):
            self._results.fail(waiting.popleft(), error(self._forks.broken))
        self.async_calls.dispatch()
        self.calls.dispatch()

    def _listen(self) -> None:
        now = time.monotonic()
        for key, events in self._selector.select(min(self.calls.patience(now), self.async_calls.patience(now))):
            if key.data is None:
                self._wake_read.recv(4096)
            elif isinstance(key.data, AsyncWorker):
                self.async_calls.on_event(key.data, events)
            else:
                self.calls.on_event(key.data, events)

    def _bury_all(self) -> None:
        """Replay the calls of all workers after the nursery died, since they died with it."""
        self.calls.bury_all()
        self.async_calls.bury_all()
