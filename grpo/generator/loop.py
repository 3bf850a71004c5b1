"""A thread that runs an engine: it calls the engine's `step` while there is work, and runs calls of other threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from grpo.types import EngineDied, EngineFinished, GeneratorReport, Phase, Request, SamplingParams
from rewards.pool.busy_clock import Busy, BusyClock

# A message through Ray takes about as much time as a step of a small policy. So finished groups are collected for this
# time, in seconds, and sent together.
HAND_ON_S = 0.05
# A separate engine process may die without an error in the thread that waits for its step. So every waiting thread
# checks the process at this interval, in seconds.
LOOK_S = 1.0

Result = TypeVar("Result")


class Engine(Protocol):
    """The part of a generator that the loop calls. If nothing else is stated, the calls come from the loop's thread."""

    @property
    def alive(self) -> bool:
        """Whether the engine's processes are alive; any thread may call this."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do."""
        ...

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample."""
        ...

    def step(self) -> EngineFinished:
        """Sample a token of each running completion; return the finished groups."""
        ...


class EngineLoop:
    """Runs an engine in a thread. An error in the thread ends the thread, and every later call raises that error."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Make the engine in the new thread, and wait until the engine is ready.

        Raises:
            Exception: the error of `make`.
        """
        self._calls: queue.SimpleQueue[Callable[[Any], None]] = queue.SimpleQueue()
        self._handed_on = threading.Condition()
        self._outbox: EngineFinished = []
        self._engine: Engine | None = None
        # Time at which the engine's present step or call began; None while the engine waits for work.
        self._since: float | None = None
        self._busy = BusyClock()
        self._ended: Future[None] = Future()
        made: Future[None] = Future()
        threading.Thread(target=self._guarded, args=(make, made), name="engine", daemon=True).start()
        self._result_of(made)

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample for all requests, and return at once. If the engine raises an error, the loop ends."""
        self._calls.put(lambda engine: engine.submit(requests, sampling))

    def call(self, work: Callable[[Any], Result], doing: Phase | None = None) -> Result:
        """Run `work(engine)` between two steps and wait for the result. Meanwhile, the engine is busy with `doing`.

        Raises:
            Exception: the error that ended the loop, in this call or earlier.
        """
        done: Future[Result] = Future()

        def answer(engine: Any) -> None:
            with self._busy.during(doing) if doing else contextlib.nullcontext():
                result = work(engine)
            done.set_result(result)

        self._calls.put(answer)
        return self._result_of(done)

    def take(self, wait_s: float) -> GeneratorReport:
        """Return the groups that finished since the last call. Wait at most `wait_s` for the first group.

        Raises:
            Exception: the error that ended the loop.
        """
        until = time.monotonic() + wait_s
        with self._handed_on:
            while not self._handed_on.wait_for(
                lambda: self._outbox or self._ended.done(), min(LOOK_S, max(0.0, until - time.monotonic()))
            ):
                self._check_alive()
                if time.monotonic() >= until:
                    break
            finished, self._outbox = self._outbox, []
        if not finished and self._ended.done():
            self._ended.result()
        since = self._since
        return GeneratorReport(finished, 0.0 if since is None else time.monotonic() - since, self._busy.take())

    def take_busy(self) -> Busy:
        """Return the engine's activities since the last call or report, and the times of each activity."""
        return self._busy.take()

    def _result_of(self, future: Future[Result]) -> Result:
        either: list[Future[Any]] = [future, self._ended]
        while not concurrent.futures.wait(either, LOOK_S, concurrent.futures.FIRST_COMPLETED).done:
            self._check_alive()
        if not future.done():
            self._ended.result()
        return future.result()

    def _check_alive(self) -> None:
        if self._engine is not None and not self._engine.alive:
            raise EngineDied("the process of a generator's engine is gone")

    def _guarded(self, make: Callable[[], Engine], made: Future[None]) -> None:
        try:
            self._engine = make()
            made.set_result(None)
            self._run(self._engine)
        except BaseException as failure:  # raised again in the waiting threads
            with self._handed_on:
                self._ended.set_exception(failure)
                self._handed_on.notify_all()

    def _run(self, engine: Engine) -> None:
        finished: EngineFinished = []
        handed_on = 0.0
        while True:
            self._take_calls(engine)
            if not engine.busy:
                continue
            self._since = time.monotonic()
            with self._busy.during(Phase.GENERATE):
                finished += engine.step()
            if finished and (not engine.busy or time.monotonic() - handed_on > HAND_ON_S):
                with self._handed_on:
                    self._outbox += finished
                    self._handed_on.notify_all()
                finished, handed_on = [], time.monotonic()

    def _take_calls(self, engine: Engine) -> None:
        """Run the calls in the queue. If the engine has no work, wait for the next call."""
        while True:
            try:
                work = self._calls.get_nowait()
            except queue.Empty:
                if engine.busy:
                    return
                self._since = None
                work = self._calls.get()
            self._since = time.monotonic()
            work(engine)
