"""Grade a program with test code. Both run in separate cells, and this module passes calls between the cells."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from typing import Any

from sandbox.outside.call_process import begin_calls, end_calls, result_of, why_ended
from sandbox.outside.cell_handle import CellHandle, sealed_memory
from sandbox.outside.channel import BadReply, CallChannel, DeadlinePassed, ProgramEnded, parse_object
from sandbox.outside.worker import Worker
from sandbox.types import MEBIBYTE, AssertTest, Limits, ProgramStatus, TestResult

_TESTER_MEMORY = 1024 * MEBIBYTE  # the tester is trusted; only values from the program make it grow
_TESTER_PROCESSES = 16
_MAX_CALLS = 1_000_000  # the most calls that the test code of one test may make


def grade_asserts(
    worker: Worker, tester_worker: Worker, cell: CellHandle, program: int, test: AssertTest, limits: Limits, end: float
) -> TestResult:
    """Run test code in a separate cell, and pass its calls on to the program's cell.

    The first call starts the program, so no earlier failure counts against the program. From the first call on, the
    test code and the program have `limits.wall_s` seconds, but at most until the time `end`.
    """
    task = {"code": test.code, "setup": test.setup, "entry_point": test.entry_point, "case": test.case}
    tester_memory = max(_TESTER_MEMORY, limits.memory_bytes)
    tester_limits = Limits(2 * limits.wall_s, 2 * limits.cpu, tester_memory, _TESTER_PROCESSES)
    beside = limits.memory_bytes
    test_code = sealed_memory("tests", json.dumps(task).encode())
    try:
        with (
            tester_worker.open_cell(tester_limits) as tester_cell,
            closing(begin_calls(tester_cell, test_code, tester_limits, "asserts", beside=beside)) as tester,
        ):
            first = _first_call(tester, limits, end)
            if isinstance(first, tuple):
                end_calls(tester_cell, tester, orderly=first[0] is ProgramStatus.SKIPPED)
                return result_of(worker, *first)
            with closing(begin_calls(cell, program, limits, "calls", beside=tester_memory)) as channel:
                deadline = min(end, time.monotonic() + limits.wall_s)
                status, reason = _relay(tester, channel, first, deadline)
                tester_run, _ = end_calls(tester_cell, tester, orderly=status is not ProgramStatus.WALL_TIME)
                run, silent = end_calls(cell, channel, orderly=status in (ProgramStatus.OK, ProgramStatus.WRONG_ANSWER))
    finally:
        os.close(test_code)
    if not silent:
        status, reason = ProgramStatus.BAD_REPLY, "a reply without a request"
    if status is ProgramStatus.NONZERO_EXIT:
        status, reason = why_ended(run)
    if status is ProgramStatus.WRONG_ANSWER and not reason:
        # The tester ended without a verdict. Only values that the program returned can cause this, for example by
        # using up the tester's memory.
        reason = f"the test code ended early: {tester_run.status.value}"
    return result_of(worker, status, reason, run)


def _first_call(tester: CallChannel, limits: Limits, end: float) -> dict[str, Any] | tuple[ProgramStatus, str]:
    """Return the first call of the test code, or how the test ended without a call."""
    deadline = time.monotonic() + limits.wall_s
    try:
        message = parse_object(tester.receive(min(end, deadline)))
    except DeadlinePassed:
        if end < deadline:  # the program used up the time in earlier tests
            return ProgramStatus.WALL_TIME, "the time for all tests ended before the test code called the program"
        return ProgramStatus.BAD_TEST, f"the test code did not call the program within {limits.wall_s:g} s"
    except (ProgramEnded, BadReply):
        return ProgramStatus.BAD_TEST, "the test code ended before it called the program"
    reason = str(message.get("reason"))[:300]
    if message.get("passed") is True or message.get("skipped") is True:
        return ProgramStatus.SKIPPED, reason or "the test code never called the program"
    if "passed" in message:
        return ProgramStatus.BAD_TEST, f"the test code failed before it called the program: {reason}"
    return message


def _relay(
    tester: CallChannel, channel: CallChannel, message: dict[str, Any], deadline: float
) -> tuple[ProgramStatus, str]:
    """Send calls to the program and answers back to the tester, until the tester gives its verdict.

    After the first call no failure counts as a fault of the test, since a program could imitate such a fault.
    """
    try:
        for _ in range(_MAX_CALLS):
            if "passed" in message:
                passed = message["passed"] is True
                return (
                    (ProgramStatus.OK, "") if passed else (ProgramStatus.WRONG_ANSWER, str(message.get("reason"))[:300])
                )
            call: dict[str, Any] = message["call"]
            answer = channel.ask(json.dumps(call | {"handles": True}).encode(), deadline)
            message = parse_object(tester.ask(answer, deadline))
    except DeadlinePassed:
        return ProgramStatus.WALL_TIME, "no verdict in time"
    except ProgramEnded:
        return ProgramStatus.NONZERO_EXIT if not tester.ended else ProgramStatus.WRONG_ANSWER, ""
    except BadReply as problem:
        return ProgramStatus.BAD_REPLY, str(problem)
    return ProgramStatus.WALL_TIME, f"more than {_MAX_CALLS} calls"
