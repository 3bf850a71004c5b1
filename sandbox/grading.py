"""Run one program's tests in one cell and compare, on this side, what came with what was expected.

Expected values stay in this process (and, for assert-style test code, in the tester's sandbox): they never enter the
program's process, its files, arguments or environment, nor those of any process that it can read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

from sandbox.cell_handle import CellHandle, limits_message, most_runs, sealed_memory
from sandbox.channel import BadReply, CallChannel, DeadlinePassed, ProgramEnded, parse_object
from sandbox.compare import equal_encoded, equal_text
from sandbox.languages import Runnable
from sandbox.types import (
    MEBIBYTE,
    AssertTest,
    CallTest,
    ExecutionResult,
    Limits,
    Status,
    StdinTest,
    Test,
    TestResult,
)
from sandbox.values import NotPlainData, encode
from sandbox.worker import Worker

T = TypeVar("T", bound=Test)
_TESTER_MEMORY = 1024 * MEBIBYTE  # the tester is ours; what grows in it is what the program returned
_EXTRA_SECONDS = 1.0  # a process that answers calls may take this much longer to load than one call may take
_TEMPLATE_TESTS = 3  # from so many tests with standard input on, a template saves more time than it takes
_NO_TIME = 0.001  # seconds; a limit must be positive
_MAX_CALLS = 1_000_000  # of one piece of test code


def grade(
    worker: Worker,
    runnable: Runnable,
    tests: Sequence[Test],
    limits: Limits,
    stop_at_failure: bool,
    total_seconds: float = math.inf,
) -> list[TestResult]:
    """Run `tests` in order and return a result for each; with `stop_at_failure` none after the first failure.

    Consecutive call tests share a process, as the calls of one grader would; after a call that ended it, or was ended,
    the next test gets a fresh one. Every other test has a process of its own. Tests that `total_seconds` of real time
    leave no time for have failed by it.

    Raises:
        WorkerLost: the sandbox failed; nothing is known of the program.
    """
    end = time.monotonic() + total_seconds
    program = sealed_memory("program", runnable.content)
    results: list[TestResult] = []
    if runnable.request["kind"] == "run" and sum(isinstance(test, StdinTest) for test in tests) >= _TEMPLATE_TESTS:
        runnable = Runnable(runnable.request | {"template": True}, runnable.content)
    try:
        with worker.open_cell(limits) as cell:
            while len(results) < len(tests):
                test = tests[len(results)]
                left = end - time.monotonic()
                allowed = limits if left > limits.wall_seconds else replace(limits, wall_seconds=max(left, _NO_TIME))
                if left <= 0:
                    reason = f"nothing is left of the {total_seconds:g} s for all tests"
                    results.append(_result(worker, Status.WALL_TIME, reason))
                elif isinstance(test, CallTest):
                    calls = _leading(CallTest, tests[len(results) :])
                    results += _grade_calls(worker, cell, program, calls, allowed, stop_at_failure, end)
                elif isinstance(test, AssertTest):
                    results.append(_grade_asserts(worker, cell, program, test, allowed))
                else:
                    # Where a failure ends it all, no more tests run in vain than have passed.
                    room = len(results) + 1 if stop_at_failure else len(tests)
                    inputs = _leading(StdinTest, tests[len(results) :])[: min(room, most_runs(limits))]
                    results += _grade_stdin(worker, cell, program, runnable, inputs, limits, end)
                if stop_at_failure and not all(result.passed for result in results):
                    break
    finally:
        os.close(program)
    failures = [number for number, result in enumerate(results) if not result.passed]
    return results[: failures[0] + 1] if stop_at_failure and failures else results


def _leading(kind: type[T], tests: Sequence[Test]) -> list[T]:
    """The tests of one kind with which `tests` begins."""
    return list(itertools.takewhile(lambda test: isinstance(test, kind), tests))  # type: ignore[arg-type]


def _result(worker: Worker, status: Status, reason: str, run: ExecutionResult | None = None) -> TestResult:
    return TestResult(
        passed=status is Status.OK,
        status=status,
        reason=reason,
        wall_seconds=run.wall_seconds if run else 0.0,
        cpu_seconds=run.cpu_seconds if run else 0.0,
        memory_bytes=run.memory_bytes if run else 0,
        isolation=worker.isolation,
    )


def _grade_stdin(
    worker: Worker,
    cell: CellHandle,
    program: int,
    runnable: Runnable,
    tests: Sequence[StdinTest],
    limits: Limits,
    end: float,
) -> list[TestResult]:
    """Grade tests by their output, at least one of them, as many as `end` by the clock leaves time for."""
    inputs = [test.stdin.encode("utf-8", "surrogatepass") for test in tests]
    cell.begin(runnable.request | {"limits": limits_message(limits)}, program, inputs, end=end)
    return [_judged(worker, test, run) for test, run in zip(tests, cell.finish_all(), strict=False)]


def _judged(worker: Worker, test: StdinTest, run: ExecutionResult) -> TestResult:
    if run.status is not Status.OK:
        return _result(worker, run.status, run.reason, run)
    if equal_text(run.stdout, test.stdout, test.tolerance, test.any_order):
        return _result(worker, Status.OK, "", run)
    return _result(worker, Status.WRONG_ANSWER, "the output differs from what is expected", run)


def _begin_calls(cell: CellHandle, program: int, limits: Limits, kind: str, calls: int, beside: int = 0) -> CallChannel:
    """Start a process that answers calls, or asks them; `beside` bytes are left for another that runs with it."""
    channel = CallChannel()
    try:
        message = limits_message(limits, calls)
        message["wall_seconds"] += _EXTRA_SECONDS
        message["cpu_seconds"] += _EXTRA_SECONDS
        cell.begin({"kind": kind, "limits": message, "beside": beside}, program, channel=channel.far_ends)
    except BaseException:
        channel.close()
        raise
    finally:
        channel.close_far_ends()
    return channel


def _end_calls(cell: CellHandle, channel: CallChannel, orderly: bool) -> tuple[ExecutionResult, bool]:
    """End the process behind a channel; returns how it went and whether the channel stayed silent.

    Closing the channel is an honest program's sign to exit; one that has to be stopped has used up its cell.
    """
    silent = True
    if not orderly:
        cell.request_stop()
        run = cell.finish()
    else:
        channel.close_requests()
        run = cell.finish()
        try:
            channel.check_silence()
        except BadReply:
            silent = False
    return run, silent


def _grade_calls(
    worker: Worker,
    cell: CellHandle,
    program: int,
    tests: Sequence[CallTest],
    limits: Limits,
    stop_at_failure: bool,
    end: float,
) -> list[TestResult]:
    """Grade calls in one process, up to and including the first that ends it, until `end` by the clock."""
    verdicts: list[tuple[Status, str]] = []
    ended = False
    with closing(_begin_calls(cell, program, limits, "calls", len(tests))) as channel:
        for test in tests:
            if ended or (stop_at_failure and verdicts and verdicts[-1][0] is not Status.OK):
                break
            status, reason, ended = _grade_call(channel, test, limits, end)
            verdicts.append((status, reason))
        run, silent = _end_calls(cell, channel, orderly=not ended)
    if not silent:
        verdicts[-1] = (Status.BAD_REPLY, "a reply that nobody asked for")
    if ended and verdicts[-1][0] is Status.NONZERO_EXIT:
        verdicts[-1] = _why_ended(run)
    share = 1 / len(verdicts)
    return [
        TestResult(
            passed=status is Status.OK,
            status=status,
            reason=reason,
            wall_seconds=run.wall_seconds * share,
            cpu_seconds=run.cpu_seconds * share,
            memory_bytes=run.memory_bytes,
            isolation=worker.isolation,
        )
        for status, reason in verdicts
    ]


def _why_ended(run: ExecutionResult) -> tuple[Status, str]:
    """Why a process ended instead of answering. An orderly exit is no answer either."""
    if run.status in (Status.OK, Status.SIGNAL) and run.exit_code == 0:
        return Status.NONZERO_EXIT, "the program exited instead of returning"
    return run.status, run.reason


def _grade_call(channel: CallChannel, test: CallTest, limits: Limits, end: float) -> tuple[Status, str, bool]:
    """One call: its status, a reason, and whether the process is of no further use."""
    request = {
        "function": test.function,
        "arguments": [encode(item) for item in test.arguments],
        "keywords": {name: encode(item) for name, item in test.keywords.items()},
        "handles": False,
    }
    try:
        line = channel.ask(json.dumps(request).encode(), min(end, time.monotonic() + limits.wall_seconds))
        reply = parse_object(line)
        if set(reply) == {"exception", "message"}:
            return Status.EXCEPTION, f"{reply['exception']}: {reply['message']}"[:300], False
        if set(reply) != {"ok"}:
            raise BadReply("a reply of another form")
        if equal_encoded(reply["ok"], test.expected, test.tolerance, test.any_order):
            return Status.OK, "", False
        return Status.WRONG_ANSWER, "the result differs from what is expected", False
    except DeadlinePassed:
        return Status.WALL_TIME, f"no result within {limits.wall_seconds:g} s", True
    except ProgramEnded:
        return Status.NONZERO_EXIT, "", True
    except (BadReply, NotPlainData, RecursionError) as problem:
        return Status.BAD_REPLY, str(problem)[:300], True


def _grade_asserts(worker: Worker, cell: CellHandle, program: int, test: AssertTest, limits: Limits) -> TestResult:
    """Run test code in a cell of its own and pass its calls on to the program's cell."""
    task = json.dumps({"code": test.code, "setup": test.setup, "entry_point": test.entry_point}).encode()
    tester_limits = Limits(limits.wall_seconds, limits.cpu, max(_TESTER_MEMORY, limits.memory_bytes), 16)
    test_code = sealed_memory("tests", task)
    try:
        with (
            worker.open_cell(tester_limits) as tester_cell,
            closing(_begin_calls(cell, program, limits, "calls", 1, tester_limits.memory_bytes)) as channel,
            closing(_begin_calls(tester_cell, test_code, tester_limits, "asserts", 1)) as tester,
        ):
            status, reason = _relay(tester, channel, time.monotonic() + limits.wall_seconds)
            tester_run, _ = _end_calls(tester_cell, tester, orderly=status is not Status.WALL_TIME)
            orderly = status in (Status.OK, Status.WRONG_ANSWER)
            run, silent = _end_calls(cell, channel, orderly)
    finally:
        os.close(test_code)
    if not silent:
        status, reason = Status.BAD_REPLY, "a reply that nobody asked for"
    if status is Status.NONZERO_EXIT:
        status, reason = _why_ended(run)
    if status is Status.WRONG_ANSWER and not reason:
        # The tester ended without a verdict: only what the program returned can have done that (out of memory).
        reason = f"the test code ended early: {tester_run.status.value}"
    return _result(worker, status, reason, run)


def _relay(tester: CallChannel, channel: CallChannel, deadline: float) -> tuple[Status, str]:
    """Carry calls from the tester to the program and answers back, until the tester gives its verdict."""
    try:
        message = parse_object(tester.receive(deadline))
        for _ in range(_MAX_CALLS):
            if "passed" in message:
                passed = message["passed"] is True
                return (Status.OK, "") if passed else (Status.WRONG_ANSWER, str(message.get("reason"))[:300])
            call: dict[str, Any] = message["call"]
            answer = channel.ask(json.dumps(call | {"handles": True}).encode(), deadline)
            message = parse_object(tester.ask(answer, deadline))
    except DeadlinePassed:
        return Status.WALL_TIME, "no verdict in time"
    except ProgramEnded:
        return Status.NONZERO_EXIT if not tester.ended else Status.WRONG_ANSWER, ""
    except BadReply as problem:
        return Status.BAD_REPLY, str(problem)
    return Status.WALL_TIME, f"more than {_MAX_CALLS} calls"
