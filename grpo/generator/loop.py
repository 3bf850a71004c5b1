"""One thread that owns an engine: it steps it while there is work, and takes calls from other threads between steps."""

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

# A message costs Ray about as much as a small policy's engine needs for a step, so those of so many seconds are one.
HAND_ON_S = 0.05
# How often whoever waits for the engine looks whether it lives: one in a process of its own may die without a word to
# the thread that waits for its next step.
LOOK_S = 1.0

Result = TypeVar("Result")


class Engine(Protocol):
    """A generator, as far as the loop drives it, in the loop's thread except where it says otherwise."""

    @property
    def alive(self) -> bool:
        """Whether the processes of the engine are there; asked from any thread."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample."""
        ...

    def step(self) -> EngineFinished:
        """Sample a token of each running completion; the groups that this finished."""
        ...


class EngineLoop:
    """The thread. What goes wrong in it ends it, and is raised by every call from then on."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Make the engine in the thread that will use it, and wait for it.

        Raises:
            Exception: what `make` raised.
        """
        self._calls: queue.SimpleQueue[Callable[[Any], None]] = queue.SimpleQueue()
        self._handed_on = threading.Condition()
        self._outbox: EngineFinished = []
        self._engine: Engine | None = None
        # Since when the engine has been in its present step or call; None while it waits for one.
        self._since: float | None = None
        self._busy = BusyClock()
        self._ended: Future[None] = Future()
        made: Future[None] = Future()
        threading.Thread(target=self._guarded, args=(make, made), name="engine", daemon=True).start()
        self._result_of(made)

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample for all requests; returns at once. What the engine refuses ends the loop."""
        self._calls.put(lambda engine: engine.submit(requests, sampling))

    def call(self, work: Callable[[Any], Result], doing: Phase | None = None) -> Result:
        """Run `work(engine)` between two steps and wait for its result; the engine counts as busy with `doing`.

        Raises:
            Exception: what the loop ended with, be it this call's fault or an earlier one's.
        """
        done: Future[Result] = Future()

        def answer(engine: Any) -> None:
            with self._busy.during(doing) if doing else contextlib.nullcontext():
                result = work(engine)
            done.set_result(result)

        self._calls.put(answer)
        return self._result_of(done)

    def take(self, wait_s: float) -> GeneratorReport:
        """Groups finished since the last call, waiting up to `wait_s` for the first; none where nothing came.

        Raises:
            Exception: what the loop ended with.
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
        """What the engine did, and when, since it was last told here or in a report."""
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
        except BaseException as failure:  # carried to the threads that wait for this one
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
        """Those that wait; where the engine has nothing to do, sleep until there is one."""
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
