"""The supervisor's end of one cell: start runs in it, stop them, read their results."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sandbox.types import MEBIBYTE, STDERR_BYTES, ExecutionResult, Isolation, Limits, ProgramStatus

# A cell ends a program at its deadline. If no reply comes within this extra time, the worker counts as lost.
_GRACE_SECONDS = 10.0
_MAX_REPORT = 1 << 16
_MOST_RUNS = 32  # each run needs descriptors, and one message carries at most 253 descriptors
_OUTPUTS_AT_ONCE = 512 * MEBIBYTE
_MAX_RUNS_OF_A_CELL = 256  # after so many runs a new cell replaces the cell, in case the runs leave something behind
# Messages that interpreters and run-times print when memory runs out. A program that prints such a message itself gains
# nothing: only the status of its failure changes.
_OUT_OF_MEMORY = (b"MemoryError", b"std::bad_alloc", b"JavaScript heap out of memory", b"Cannot allocate memory")


class WorkerLost(Exception):
    """The worker died or stopped answering, so nothing is known about the program."""


def sealed_memory(name: str, content: bytes) -> int:
    """Return a descriptor of an anonymous file with `content`. Nobody can change the file, not even its owner."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def limits_message(limits: Limits, runs: int = 1) -> dict[str, Any]:
    """The limits in the form of a cell's request, for a process that serves `runs` tests."""
    return asdict(limits) | {"wall_s": limits.wall_s * runs, "cpu_s": limits.cpu * runs}


def most_runs(limits: Limits) -> int:
    """The number of runs that may begin at once. All outputs stay in memory, so large outputs allow fewer runs."""
    return max(1, min(_MOST_RUNS, _OUTPUTS_AT_ONCE // (2 * limits.output_bytes)))


class CellHandle:
    """The supervisor's end of one cell. A context manager; leaving it ends the cell, unless the cell may be kept."""

    def __init__(self, channel: socket.socket, isolation: Isolation, give_back: Callable[[CellHandle], None]) -> None:
        """Take over a cell that has started.

        Args:
            channel: connection to the cell.
            isolation: isolation of the cell's programs; each result contains it.
            give_back: function that takes this handle back if the cell may serve another program.
        """
        self._channel, self._isolation, self._give_back = channel, isolation, give_back
        # Descriptors for the current runs: standard output and error of the first run, then of the next run, and so on.
        self._outputs: list[int] = []
        self._deadline = 0.0
        self._output_bytes = 0
        self._runs = 0
        self._pristine = True
        self._templated = False

    def __enter__(self) -> CellHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._templated:
            self._templated = False
            with contextlib.suppress(OSError):
                self._channel.send(b'{"kind": "forget"}')
        if not self._outputs and self._pristine and self._runs < _MAX_RUNS_OF_A_CELL:
            self._give_back(self)
        else:
            self.close()

    def close(self) -> None:
        """End the cell and everything in it."""
        self._channel.close()
        self._close_outputs()

    def _close_outputs(self) -> None:
        for descriptor in self._outputs:
            os.close(descriptor)
        self._outputs = []

    def begin(
        self,
        request: dict[str, Any],
        program: int,
        inputs: Sequence[bytes] = (b"",),
        channel: Sequence[int] = (),
        end: float = math.inf,
    ) -> None:
        """Start a run for each input, one after the other.

        Args:
            request: fields for `child.become_program`.
            program: descriptor of the program's text.
            inputs: standard input of each run, at most `most_runs` of them.
            channel: the program's two ends of a `CallChannel`, for a program that answers calls.
            end: time on the monotonic clock at which the running program is ended and the other runs are left out.

        Raises:
            WorkerLost: the cell is gone.
        """
        assert not self._outputs, "a cell runs one program at a time"
        limits = request["limits"]
        self._templated = self._templated or bool(request.get("template"))
        self._output_bytes = limits["output_bytes"]
        self._deadline = time.monotonic() + limits["wall_s"] * len(inputs) + _GRACE_SECONDS
        descriptors = [program]
        stdin_descriptors: list[int] = []
        try:
            for stdin in inputs:
                stdin_descriptors.append(sealed_memory("stdin", stdin))
                self._outputs.append(os.memfd_create("stdout", os.MFD_CLOEXEC))
                self._outputs.append(os.memfd_create("stderr", os.MFD_CLOEXEC))
                descriptors.extend((stdin_descriptors[-1], *self._outputs[-2:]))
            descriptors.extend(channel)
            message = json.dumps(request | {"runs": len(inputs), "end": end}).encode()
            socket.send_fds(self._channel, [message], descriptors)
        except OSError as problem:
            raise WorkerLost(f"the cell is gone: {problem}") from problem
        finally:
            for descriptor in stdin_descriptors:
                os.close(descriptor)

    def request_stop(self) -> None:
        """Ask the cell to end the current run now; `finish` still returns its result."""
        with contextlib.suppress(OSError):
            self._channel.send(b'{"kind": "stop"}')

    def finish(self) -> ExecutionResult:
        """Wait for the end of the current run, which must be the only run.

        Raises:
            WorkerLost: for the same reasons as in `finish_all`.
        """
        (result,) = self.finish_all()
        return result

    def finish_all(self) -> list[ExecutionResult]:
        """Wait for the end of the current runs. Runs that were stopped or not begun in time have no result.

        Raises:
            WorkerLost: the cell did not answer in time, or it reported a failure of the sandbox.
        """
        assert self._outputs, "nothing was begun"
        try:
            self._channel.settimeout(max(0.001, self._deadline - time.monotonic()))
            message = self._channel.recv(_MAX_REPORT)
        except OSError as problem:
            raise WorkerLost(f"the cell did not answer: {problem}") from problem
        if not message:
            raise WorkerLost("the cell ended without an answer")
        results = [
            self._result(reply, *self._outputs[2 * run : 2 * run + 2]) for run, reply in enumerate(json.loads(message))
        ]
        self._close_outputs()
        return results

    def _result(self, reply: dict[str, Any], stdout_descriptor: int, stderr_descriptor: int) -> ExecutionResult:
        status = ProgramStatus(reply["status"])
        if status is ProgramStatus.SANDBOX_ERROR:
            raise WorkerLost(reply["reason"])
        stdout = os.pread(stdout_descriptor, self._output_bytes, 0)
        stderr = os.pread(stderr_descriptor, STDERR_BYTES, 0)
        self._runs += 1
        self._pristine = self._pristine and reply["pristine"]
        if status in (ProgramStatus.NONZERO_EXIT, ProgramStatus.SIGNAL) and _says_out_of_memory(stderr):
            status = ProgramStatus.MEMORY
        return ExecutionResult(
            status=status,
            exit_code=reply["exit_code"],
            stdout=stdout,
            stderr=stderr,
            wall_s=reply["wall_s"],
            cpu_s=reply["cpu_s"],
            memory_bytes=reply["memory_bytes"],
            isolation=self._isolation,
            reason=_last_line(stderr) if status is not ProgramStatus.OK else "",
        )


def _says_out_of_memory(stderr: bytes) -> bool:
    return any(mark in stderr[-2000:] for mark in _OUT_OF_MEMORY)


def _last_line(stderr: bytes) -> str:
    lines = stderr[-2000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
