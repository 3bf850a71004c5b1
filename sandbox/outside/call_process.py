"""Start and end a process that answers calls to a program's functions, and find out why it ended early."""

from __future__ import annotations

from sandbox.outside.cell_handle import CellHandle, limits_message
from sandbox.outside.channel import BadReply, CallChannel
from sandbox.outside.worker import Worker
from sandbox.types import ExecutionResult, Limits, ProgramStatus, TestResult

_EXTRA_SECONDS = 1.0  # time for loading the program, in addition to the time for its calls


def result_of(worker: Worker, status: ProgramStatus, reason: str, run: ExecutionResult | None = None) -> TestResult:
    """Make the result of a test that ended with `status`. The result has the time and memory that `run` used."""
    used = (run.wall_s, run.cpu_s, run.memory_bytes) if run else (0.0, 0.0, 0)
    return TestResult(status is ProgramStatus.OK, status, reason, *used, worker.isolation)


def begin_calls(
    cell: CellHandle, program: int, limits: Limits, kind: str, calls: int = 1, beside: int = 0
) -> CallChannel:
    """Start a process of `kind` that answers `calls` calls; return the channel to it.

    `beside` bytes of memory are for another process that runs at the same time, perhaps in the same worker.
    """
    channel = CallChannel()
    try:
        message = limits_message(limits, calls)
        message["wall_s"] += _EXTRA_SECONDS
        message["cpu_s"] += _EXTRA_SECONDS
        cell.begin({"kind": kind, "limits": message, "beside": beside}, program, channel=channel.far_ends)
    except BaseException:
        channel.close()
        raise
    finally:
        channel.close_far_ends()
    return channel


def end_calls(cell: CellHandle, channel: CallChannel, orderly: bool) -> tuple[ExecutionResult, bool]:
    """End the process behind a channel; return its result, and whether no further reply came.

    An honest program exits when its channel closes. If the program must be stopped, its cell is not used again.
    """
    if not orderly:
        cell.request_stop()
        return cell.finish(), True
    channel.close_requests()
    run = cell.finish()
    try:
        channel.check_silence()
    except BadReply:
        return run, False
    return run, True


def why_ended(run: ExecutionResult) -> tuple[ProgramStatus, str]:
    """The reason why a process ended instead of answering. An orderly exit is a failure too."""
    if run.status in (ProgramStatus.OK, ProgramStatus.SIGNAL) and run.exit_code == 0:
        return ProgramStatus.NONZERO_EXIT, "the program exited instead of returning"
    return run.status, run.reason
