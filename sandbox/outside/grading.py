"""Run one program's tests in one cell, and compare the results with the expected values on this side.

Expected values stay in this process (and, for assert-style test code, in the tester's sandbox): they never enter the
program's process, its files, arguments or environment, and they never enter any process that the program can read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

from sandbox.outside.assert_grading import grade_asserts
from sandbox.outside.call_process import begin_calls, end_calls, result_of, why_ended
from sandbox.outside.cell_handle import CellHandle, limits_message, most_runs, sealed_memory
from sandbox.outside.channel import BadReply, CallChannel, DeadlinePassed, ProgramEnded, parse_object
from sandbox.outside.compare import equal_encoded, equal_text
from sandbox.outside.languages import Runnable
from sandbox.outside.worker import Worker
from sandbox.types import (
    AssertTest,
    CallTest,
    ExecutionResult,
    Limits,
    ProgramStatus,
    StdinTest,
    Test,
    TestResult,
)
from sandbox.values import NotPlainData, encode

T = TypeVar("T", bound=Test)
_TEMPLATE_TESTS = 3  # for fewer tests with standard input, a template costs more time than it saves


def grade(
    worker: Worker,
    runnable: Runnable,
    tests: Sequence[Test],
    limits: Limits,
    stop_at_failure: bool,
    total_s: float = math.inf,
    tester_for: Callable[[AssertTest], Worker] | None = None,
) -> list[TestResult]:
    """Run `tests` in order and return a result for each; if `stop_at_failure`, stop after the first failure.

    Consecutive call tests share a process. After a call that ended the process or passed its deadline, the next test
    gets a new process. Every other test has a separate process. Tests that do not end within `total_s` of real
    time fail. Test code runs in the worker that `tester_for` returns, by default in `worker`.

    Raises:
        WorkerLost: the sandbox failed; nothing is known about the program.
    """
    end = time.monotonic() + total_s
    program = sealed_memory("program", runnable.content)
    results: list[TestResult] = []
    if runnable.request["kind"] == "run" and sum(isinstance(test, StdinTest) for test in tests) >= _TEMPLATE_TESTS:
        runnable = Runnable(runnable.request | {"template": True}, runnable.content)
    try:
        with worker.open_cell(limits) as cell:
            while len(results) < len(tests):
                test = tests[len(results)]
                if time.monotonic() > end:
                    reason = f"earlier tests used up the {total_s:g} s for all tests"
                    results.append(result_of(worker, ProgramStatus.WALL_TIME, reason))
                elif isinstance(test, CallTest):
                    calls = _leading(CallTest, tests[len(results) :])
                    results += _grade_calls(worker, cell, program, calls, limits, stop_at_failure, end)
                elif isinstance(test, AssertTest):
                    tester = tester_for(test) if tester_for is not None else worker
                    results.append(grade_asserts(worker, tester, cell, program, test, limits, end))
                else:
                    # If a failure ends the grading, the results of later tests are useless. So the number of tests that
                    # are started at once is at most one more than the number of tests that have passed.
                    room = len(results) + 1 if stop_at_failure else len(tests)
                    inputs = _leading(StdinTest, tests[len(results) :])[: min(room, most_runs(limits))]
                    results += _grade_stdin(worker, cell, program, runnable, inputs, limits, end)
                if stop_at_failure and any(result.failed for result in results):
                    break
    finally:
        os.close(program)
    failures = [number for number, result in enumerate(results) if result.failed]
    return results[: failures[0] + 1] if stop_at_failure and failures else results


def _leading(kind: type[T], tests: Sequence[Test]) -> list[T]:
    """The tests of `kind` at the beginning of `tests`."""
    return list(itertools.takewhile(lambda test: isinstance(test, kind), tests))  # type: ignore[arg-type]


def _grade_stdin(
    worker: Worker,
    cell: CellHandle,
    program: int,
    runnable: Runnable,
    tests: Sequence[StdinTest],
    limits: Limits,
    end: float,
) -> list[TestResult]:
    """Grade tests by their output: at least one test, and all tests that run before the time `end`."""
    inputs = [test.stdin.encode("utf-8", "surrogatepass") for test in tests]
    cell.begin(runnable.request | {"limits": limits_message(limits)}, program, inputs, end=end)
    return [_judged(worker, test, run) for test, run in zip(tests, cell.finish_all(), strict=False)]


def _judged(worker: Worker, test: StdinTest, run: ExecutionResult) -> TestResult:
    if run.status is not ProgramStatus.OK:
        return result_of(worker, run.status, run.reason, run)
    if equal_text(run.stdout, test.stdout, test.tolerance, test.any_order):
        return result_of(worker, ProgramStatus.OK, "", run)
    return result_of(worker, ProgramStatus.WRONG_ANSWER, "the output differs from what is expected", run)


def _grade_calls(
    worker: Worker,
    cell: CellHandle,
    program: int,
    tests: Sequence[CallTest],
    limits: Limits,
    stop_at_failure: bool,
    end: float,
) -> list[TestResult]:
    """Grade calls in one process until the time `end`. The first call that ends the process is the last call."""
    verdicts: list[tuple[ProgramStatus, str]] = []
    ended = False
    with closing(begin_calls(cell, program, limits, "calls", len(tests))) as channel:
        for test in tests:
            if ended or (stop_at_failure and verdicts and verdicts[-1][0] is not ProgramStatus.OK):
                break
            status, reason, ended = _grade_call(channel, test, limits, end)
            verdicts.append((status, reason))
        run, silent = end_calls(cell, channel, orderly=not ended)
    if not silent:
        verdicts[-1] = (ProgramStatus.BAD_REPLY, "a reply without a request")
    if ended and verdicts[-1][0] is ProgramStatus.NONZERO_EXIT:
        verdicts[-1] = why_ended(run)
    count = len(verdicts)
    each = replace(run, wall_s=run.wall_s / count, cpu_s=run.cpu_s / count)
    return [result_of(worker, status, reason, each) for status, reason in verdicts]


def _grade_call(channel: CallChannel, test: CallTest, limits: Limits, end: float) -> tuple[ProgramStatus, str, bool]:
    """Make one call; return its status, a reason, and whether the process cannot be used again."""
    try:
        request = {
            "function": test.function,
            "arguments": [encode(item) for item in test.arguments],
            "keywords": {name: encode(item) for name, item in test.keywords.items()},
            "handles": False,
        }
    except NotPlainData as problem:
        return ProgramStatus.BAD_TEST, f"the arguments of the call: {problem}"[:300], False
    try:
        line = channel.ask(json.dumps(request).encode(), min(end, time.monotonic() + limits.wall_s))
        reply = parse_object(line)
        if set(reply) == {"exception", "base", "message"}:
            return ProgramStatus.EXCEPTION, f"{reply['exception']}: {reply['message']}"[:300], False
        if set(reply) != {"ok"}:
            raise BadReply("a reply of another form")
        if equal_encoded(reply["ok"], test.expected, test.tolerance, test.any_order):
            return ProgramStatus.OK, "", False
        return ProgramStatus.WRONG_ANSWER, "the result differs from what is expected", False
    except DeadlinePassed:
        return ProgramStatus.WALL_TIME, f"no result within {limits.wall_s:g} s", True
    except ProgramEnded:
        return ProgramStatus.NONZERO_EXIT, "", True
    except (BadReply, NotPlainData, RecursionError) as problem:
        return ProgramStatus.BAD_REPLY, str(problem)[:300], True
