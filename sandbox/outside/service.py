"""`Sandbox`: the object that runs and grades programs."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar

from sandbox.outside import grading
from sandbox.outside.cell_handle import WorkerLost, limits_message, sealed_memory
from sandbox.outside.languages import Compiler, NotRunnable, Runnable
from sandbox.outside.slots import Slot, Slots
from sandbox.outside.worker import Worker
from sandbox.types import (
    AssertTest,
    CallTest,
    ExecutionResult,
    Isolation,
    IsolationError,
    IsolationLevel,
    Language,
    Layer,
    Limits,
    ProgramStatus,
    SandboxError,
    Test,
    TestResult,
)
from sandbox.worker_settings import WorkerSettings

T = TypeVar("T")
P = ParamSpec("P")
WorkerFor = Callable[[tuple[str, ...]], Worker]  # the slot's worker that has these modules
_ATTEMPTS = 2  # a program whose worker died runs once more; if the new worker dies too, its status is SANDBOX_ERROR
_STARTED_AT_ONCE = 16  # number of workers; each start keeps a core busy for a quarter of a second
_DEFAULT_LIMITS = Limits()


def _off_the_event_loop(
    method: Callable[Concatenate[Sandbox, P], T],
) -> Callable[Concatenate[Sandbox, P], Coroutine[Any, Any, T]]:
    """Turn a method into a coroutine. The method itself runs in one of the sandbox's threads."""

    @functools.wraps(method)
    async def coroutine(sandbox: Sandbox, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        work = functools.partial(method, sandbox, *arguments, **keywords)
        return await asyncio.wrap_future(sandbox._threads.submit(work))

    return coroutine


class Sandbox:
    """Runs and grades untrusted programs. Many threads may use a sandbox; coroutines may use its `_async` methods.

    Use it as a context manager, or call `close`. Only the process that made the sandbox may use it, unless this
    process calls `share`.

    Args:
        level: the weakest isolation at which programs may run.
        workers: number of programs that run at the same time. The number of cores is the best choice.
        preload: modules that stay imported in a separate worker, which runs the programs and tests that mention them.
        without: layers to leave out. For tests only.
        waiting: function that makes a context manager. A call enters it while waiting for a free worker.

    Raises:
        IsolationError: this machine cannot give `level`; the message says what is missing and how to get it.
        SandboxError: a worker could not be started.
    """

    def __init__(
        self,
        level: IsolationLevel = IsolationLevel.CONFINED,
        workers: int = 1,
        preload: Sequence[str] = ("numpy",),
        without: frozenset[Layer] = frozenset(),
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._level, self._preload, self._without, self._waiting = level, tuple(preload), without, waiting
        self._owner = os.getpid()
        self._compiler = Compiler()
        self._slots = Slots(workers)
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        try:
            self.isolation: Isolation = self._worker(self._slots.all[0], ()).isolation
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and the programs that they run. Can be called twice."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._owner != os.getpid():
            return
        for slot in self._slots.all:
            # A thread that is running a program notices the end of its worker, and does not start another worker.
            for worker in list(slot.workers.values()):
                worker.stop()
            slot.workers.clear()

    def share(self) -> None:
        """Start all workers now, and let processes that are forked from now on run programs in them too.

        All these processes together run `workers` programs at the same time. When a process ends, for any reason, its
        programs end at once. The workers end when the process that made the sandbox closes it or ends. Call this method
        before any program runs, and while the process has only one thread.

        Raises:
            SandboxError: a worker could not be started.
        """
        installed = tuple(sorted(name for name in self._preload if importlib.util.find_spec(name)))
        wanted = [(slot, modules) for slot in self._slots.all for modules in dict.fromkeys([(), installed])]
        with ThreadPoolExecutor(min(_STARTED_AT_ONCE, len(wanted))) as starting:
            for started in [starting.submit(self._worker, *pair) for pair in wanted]:
                started.result()
        self._slots.share()

    @property
    def shared(self) -> bool:
        """Whether forks of the process that made the sandbox may use it."""
        return self._slots.shared

    @property
    def worker_pids(self) -> list[int]:
        """Process numbers of the workers that are running."""
        return [worker.pid for slot in self._slots.all for worker in list(slot.workers.values())]

    def run(
        self,
        program: str | bytes,
        stdin: str | bytes = b"",
        limits: Limits = _DEFAULT_LIMITS,
        language: Language = Language.PYTHON,
        preload: Sequence[str] | None = None,
    ) -> ExecutionResult:
        """Run a program once.

        A failure of the program is a status of the result, never an exception. If the sandbox fails, the program runs
        once more on a new worker; if that fails too, the status is `SANDBOX_ERROR`.

        Args:
            program: source of the program. Text that cannot be encoded counts as a program that does not compile.
            stdin: standard input of the program.
            limits: limits of the run.
            language: language of the program.
            preload: modules to import first; by default the sandbox's `preload` modules that the program mentions.

        Raises:
            SandboxError: the sandbox is closed or belongs to another process.
        """
        source = _encoded(program)

        def work(worker: Worker, runnable: Runnable, _: WorkerFor) -> ExecutionResult:
            descriptor = sealed_memory("program", runnable.content)
            try:
                with worker.open_cell(limits) as cell:
                    request = runnable.request | {"limits": limits_message(limits)}
                    cell.begin(request, descriptor, [_encoded(stdin)])
                    return cell.finish()
            finally:
                os.close(descriptor)

        outcome = self._attempt(work, source, language, preload)
        return outcome.as_result(self.isolation) if isinstance(outcome, NotRunnable) else outcome

    def grade(
        self,
        program: str | bytes,
        tests: Sequence[Test],
        limits: Limits = _DEFAULT_LIMITS,
        language: Language = Language.PYTHON,
        preload: Sequence[str] | None = None,
        stop_at_failure: bool = False,
        total_s: float = math.inf,
        compile_limits: Limits | None = None,
    ) -> list[TestResult]:
        """Run a program's tests in order, and return a result for each; if `stop_at_failure`, up to the first failure.

        Args:
            program: source of the program.
            tests: tests to run, in order.
            limits: limits of each test. A call's time is measured from the request to the reply.
            language: language of the program; programs in languages other than Python can only have `StdinTest`s.
            preload: the same as in `run`.
            stop_at_failure: whether to leave out the tests after the first failing test.
            total_s: real time for all tests together, without compiling. Tests that do not end within this time fail.
            compile_limits: limits of the compiler, if the language has one; by default `languages.COMPILE_LIMITS`.

        Raises:
            SandboxError: the sandbox is closed or belongs to another process.
            ValueError: call tests or test code for a language other than Python.
        """
        if language is not Language.PYTHON and any(isinstance(test, CallTest | AssertTest) for test in tests):
            raise ValueError(f"only Python programs can be tested by calls; {language.value} takes StdinTest")
        source = _encoded(program)

        def work(worker: Worker, runnable: Runnable, worker_for: WorkerFor) -> list[TestResult]:
            def tester_for(test: AssertTest) -> Worker:
                return worker_for(self._modules(_encoded(test.setup + test.code), language, preload))

            return grading.grade(worker, runnable, tests, limits, stop_at_failure, total_s, tester_for)

        outcome = self._attempt(work, source, language, preload, compile_limits)
        if isinstance(outcome, NotRunnable):
            return [TestResult(False, outcome.status, outcome.reason, isolation=self.isolation) for _ in tests]
        return outcome

    run_async = _off_the_event_loop(run)
    grade_async = _off_the_event_loop(grade)

    def _modules(self, source: bytes, language: Language, preload: Sequence[str] | None) -> tuple[str, ...]:
        if preload is not None:
            return tuple(sorted(preload))
        if language is not Language.PYTHON:
            return ()
        return tuple(sorted(name for name in self._preload if re.search(rb"\b" + name.encode() + rb"\b", source)))

    def _worker(self, slot: Slot, modules: tuple[str, ...]) -> Worker:
        worker = slot.workers.get(modules)
        if worker is None:
            settings = WorkerSettings(
                supervisor=os.getpid(),
                preload=modules,
                search_path=tuple(path for path in sys.path if path and os.path.isdir(path)),
                without=self._without,
            )
            worker = Worker(settings)
            if worker.isolation.level < self._level:
                worker.stop()
                raise IsolationError(worker.isolation.refusal(self._level))
            slot.workers[modules] = worker
            if self._closed:
                worker.stop()
                raise SandboxError("this sandbox is closed")
        return worker

    def _attempt(
        self,
        work: Callable[[Worker, Runnable, WorkerFor], T],
        source: bytes,
        language: Language,
        preload: Sequence[str] | None,
        compile_limits: Limits | None = None,
    ) -> T | NotRunnable:
        """Prepare a program and do `work` with it on a free slot's worker. Return the reason if it cannot be run."""
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if self._owner != os.getpid() and not self._slots.shared:
            raise SandboxError("this sandbox belongs to another process; share it before a fork, or make a new sandbox")
        modules = self._modules(source, language, preload)
        with self._waiting():
            slot = self._slots.take()
        reason = ""
        try:
            for _ in range(_ATTEMPTS):
                used: set[tuple[str, ...]] = set()

                def worker_for(modules: tuple[str, ...], used: set[tuple[str, ...]] = used) -> Worker:
                    used.add(modules)
                    return self._worker(slot, modules)

                try:
                    worker = worker_for(modules)
                    return work(worker, self._compiler.prepare(worker, source, language, compile_limits), worker_for)
                except NotRunnable as problem:
                    return problem
                except (WorkerLost, SandboxError) as problem:
                    reason = str(problem)
                    for lost in [slot.workers.pop(key) for key in used & slot.workers.keys()]:
                        lost.stop()
                    if self._closed:
                        raise SandboxError("this sandbox was closed while a program ran") from problem
            return NotRunnable(ProgramStatus.SANDBOX_ERROR, reason)
        finally:
            self._slots.give_back(slot)


def _encoded(text: str | bytes) -> bytes:
    # A lone surrogate in a model's text must lead to a program that does not compile, not to an error of the sandbox.
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
