"""The supervisor's end of one cell: start a run in it, stop it, read what came of it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandbox.types import ExecutionResult, Limits, Status

if TYPE_CHECKING:
    from sandbox.worker import Worker

_GRACE_SECONDS = 10.0  # beyond a program's own deadline, which the cell keeps, before the worker is given up
_MAX_REPORT = 1 << 16
_STDERR_BYTES = 1 << 16
_MAX_RUNS_OF_A_CELL = 256  # then a new one, so that whatever might wear out does not
# How interpreters and run-times say that memory ran out. A program can print these too, and gains nothing by it: a
# failure gets another name.
_OUT_OF_MEMORY = (b"MemoryError", b"std::bad_alloc", b"JavaScript heap out of memory", b"Cannot allocate memory")


class WorkerLost(Exception):
    """The worker died or stopped answering: nothing is known of the program."""


def sealed_memory(name: str, content: bytes) -> int:
    """A descriptor of an anonymous file with `content` that nobody can change, its owner included."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def limits_message(limits: Limits, runs: int = 1) -> dict[str, Any]:
    """The limits as a cell wants them, for a process that answers for `runs` tests."""
    return {
        "wall_seconds": limits.wall_seconds * runs,
        "cpu_seconds": limits.cpu * runs,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "output_bytes": limits.output_bytes,
        "disk_bytes": limits.disk_bytes,
        "files": limits.files,
        "open_files": limits.open_files,
    }


class CellHandle:
    """The supervisor's end of one cell. A context manager; leaving it ends the cell, unless it may be kept."""

    def __init__(self, channel: socket.socket, worker: Worker, kind: tuple[int, int]) -> None:
        self._channel, self._worker, self._kind = channel, worker, kind
        self._outputs: tuple[int, int] | None = None
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
        if self._outputs is None and self._pristine and self._runs < _MAX_RUNS_OF_A_CELL:
            self._worker.give_back(self, self._kind)
        else:
            self.close()

    def close(self) -> None:
        """End the cell and everything in it."""
        self._channel.close()
        for descriptor in self._outputs or ():
            os.close(descriptor)
        self._outputs = None

    def begin(
        self,
        request: dict[str, Any],
        program: int,
        stdin: bytes = b"",
        channel: Sequence[int] = (),
    ) -> None:
        """Start one run.

        Args:
            request: as `child.become_program` takes it.
            program: descriptor of the program's text.
            stdin: its standard input.
            channel: for calls, the two far ends of a `CallChannel`.

        Raises:
            WorkerLost: the cell is gone.
        """
        assert self._outputs is None, "a cell runs one program at a time"
        limits = request["limits"]
        self._templated = self._templated or bool(request.get("template"))
        stdin_descriptor = sealed_memory("stdin", stdin)
        self._outputs = os.memfd_create("stdout", os.MFD_CLOEXEC), os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._output_bytes = limits["output_bytes"]
        self._deadline = time.monotonic() + limits["wall_seconds"] + _GRACE_SECONDS
        descriptors = array.array("i", [program, stdin_descriptor, *self._outputs, *channel])
        try:
            self._channel.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError as problem:
            raise WorkerLost(f"the cell is gone: {problem}") from problem
        finally:
            os.close(stdin_descriptor)

    def request_stop(self) -> None:
        """Ask for the current run to be ended now; `finish` still tells how it went."""
        with contextlib.suppress(OSError):
            self._channel.send(b'{"kind": "stop"}')

    def finish(self) -> ExecutionResult:
        """Wait for the current run's end.

        Raises:
            WorkerLost: the cell did not answer by the run's deadline and a grace, or told of a failure of its own.
        """
        assert self._outputs is not None, "nothing was begun"
        try:
            self._channel.settimeout(max(0.001, self._deadline - time.monotonic()))
            message = self._channel.recv(_MAX_REPORT)
        except OSError as problem:
            raise WorkerLost(f"the cell did not answer: {problem}") from problem
        if not message:
            raise WorkerLost("the cell ended without an answer")
        reply = json.loads(message)
        status = Status(reply["status"])
        if status is Status.SANDBOX_ERROR:
            raise WorkerLost(reply["reason"])
        stdout = os.pread(self._outputs[0], self._output_bytes, 0)
        stderr = os.pread(self._outputs[1], _STDERR_BYTES, 0)
        for descriptor in self._outputs:
            os.close(descriptor)
        self._outputs = None
        self._runs += 1
        self._pristine = self._pristine and reply["pristine"]
        if status in (Status.NONZERO_EXIT, Status.SIGNAL) and _says_out_of_memory(stderr):
            status = Status.MEMORY
        return ExecutionResult(
            status=status,
            exit_code=reply["exit_code"],
            stdout=stdout,
            stderr=stderr,
            wall_seconds=reply["wall_seconds"],
            cpu_seconds=reply["cpu_seconds"],
            memory_bytes=reply["memory_bytes"],
            isolation=self._worker.isolation,
            reason=_last_line(stderr) if status is not Status.OK else "",
        )


def _says_out_of_memory(stderr: bytes) -> bool:
    return any(mark in stderr[-2000:] for mark in _OUT_OF_MEMORY)


def _last_line(stderr: bytes) -> str:
    lines = stderr[-2000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
