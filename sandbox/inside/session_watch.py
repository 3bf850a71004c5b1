"""Watch a session during a call: its limits, its output, its answer; and end what the call left running."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from sandbox.inside import processes
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.watch import Watch
from sandbox.types import ProgramStatus

_LOOK = 0.010  # seconds between two checks of the limits
_CHUNK = 1 << 16
_MOST_PENDING = 1 << 12  # bytes of an unfinished line of the session's process that are kept
_STILL_SECONDS = 0.5  # time for all processes to stop
_ENDED = b"ZX"  # states in /proc/<pid>/stat
_STANDING = b"tT" + _ENDED


class Output:
    """The beginning and the end of what a call prints. What is between them is counted only.

    Args:
        most: bytes that are kept, half of them from the end.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self.head, self._tail, self.total = bytearray(), bytearray(), 0

    def add(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self.total += len(chunk)
        room = self._half - len(self.head)
        self.head += chunk[:room]
        self._tail += chunk[max(0, room) :]
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def tail(self) -> bytes:
        """The kept bytes that follow `head`, perhaps after a gap."""
        return bytes(self._tail[-self._half :])


@dataclass(frozen=True, slots=True)
class Ends:
    """The cell's ends of what leads to a session's process.

    Attributes:
        pid: process number of the session's process.
        control: socket for the calls' numbers and the answers.
        output: descriptor of the pipe behind standard output and error.
    """

    pid: int
    control: socket.socket
    output: int

    def close(self) -> None:
        """Close the descriptors."""
        self.control.close()
        os.close(self.output)


class SessionWatch(Watch):
    """Watches the processes of a session, from the start of its first process until they are killed.

    Args:
        cell: process number of the cell in the outer `/proc`.
        seal: the worker's layers, with the session's meter.
        limits: limits of each call; those of memory, processes and files hold for the whole session.
        channel: descriptor of the supervisor's socket.
        owner: descriptor of the process that opened the session.
        last_pid: descriptor of the cell's `ns_last_pid`, or None.
    """

    def __init__(
        self, cell: int, seal: Seal, limits: dict[str, Any], channel: int, owner: int, last_pid: int | None
    ) -> None:
        super().__init__(cell, seal, dict(limits), (), channel, (), last_pid)
        self._owner, self._call_cpu_s = owner, limits["cpu_s"]

    def until_answer(self, ends: Ends, number: bytes, output: Output, wall_s: float) -> tuple[ProgramStatus, int]:
        """Start a call and wait for its end, at most `wall_s` seconds.

        Return how the call ended and the exit code that the session's process states, or with which it ended. With
        `OK` or `EXCEPTION`, the process lives; otherwise it has ended (`NONZERO_EXIT`) or must be killed. `SIGNAL`: the
        owner went away.
        """
        self._looked = started = time.monotonic()
        self._limits["cpu_s"] = self.usage.cpu_s + self._call_cpu_s
        deadline, next_look = started + wall_s, started + _LOOK
        handle = os.pidfd_open(ends.pid)
        pending = bytearray()
        try:
            poll = select.poll()
            for descriptor in (handle, self._channel, self._owner, ends.control.fileno(), ends.output):
                poll.register(descriptor, select.POLLIN)
            ends.control.send(number + b"\n")
            while True:
                now = time.monotonic()
                ready = [item for item, _ in poll.poll(max(0.0, min(deadline, next_look) - now) * 1000)]
                if self._channel in ready or self._owner in ready:
                    return ProgramStatus.SIGNAL, 0
                if ends.output in ready:
                    chunk = read_now(ends.output)
                    output.add(chunk)
                    if not chunk:
                        poll.unregister(ends.output)  # no process can write to it any more
                if output.total > self._limits["output_bytes"]:
                    return ProgramStatus.OUTPUT, 0
                if ends.control.fileno() in ready:
                    chunk = read_now(ends.control.fileno())
                    pending += chunk
                    code = _answer(pending, number)
                    if code is not None:
                        return (ProgramStatus.EXCEPTION if code else ProgramStatus.OK), code
                    if not chunk:
                        poll.unregister(ends.control)  # every process closed its end; the deadline still holds
                if handle in ready:
                    return self._ended(ends.pid)
                now = time.monotonic()
                if now >= deadline:
                    return ProgramStatus.WALL_TIME, 0
                if now >= next_look and self._seal.watch:
                    passed = self._look()
                    if passed is not None:
                        return passed, 0
                    reap_orphans(ends.pid)
                    next_look = time.monotonic() + _LOOK
        except BrokenPipeError:  # the process closed its end
            return self._ended(ends.pid)
        finally:
            os.close(handle)

    def _ended(self, pid: int) -> tuple[ProgramStatus, int]:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if self._meter is not None and self._meter.ran_out():
            return ProgramStatus.MEMORY, 0
        if ended is None:
            return ProgramStatus.NONZERO_EXIT, 0
        return ProgramStatus.NONZERO_EXIT, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def resume(self, pid: int) -> None:
        """Let the session's process run again."""
        self._signal(pid, signal.SIGCONT)

    def settle(self, pid: int) -> bool:
        """Make the session's process `pid` stand still, and kill all others; return whether this succeeded.

        Between two calls, nothing of the session runs. So nothing of a call can print into the result of a later call,
        except threads of the session's process.
        """
        if not self._stop_all(pid):
            return False
        # No process runs, so none can start another.
        others = [other for other in self._descendants() if processes.inner_number(self._seal.proc, other) != pid]
        for other in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes.inner_number(self._seal.proc, other), signal.SIGKILL)
        deadline = time.monotonic() + _STILL_SECONDS
        while not all(self._in_states(other, _ENDED) for other in others):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0001)
        return True

    def _stop_all(self, pid: int) -> bool:
        deadline = time.monotonic() + _STILL_SECONDS
        while True:
            # A process that ends can make the kernel continue another process. So stop and look until nothing moves.
            self._signal(pid, signal.SIGSTOP)
            pids = self._descendants()
            # A process whose parent ends at this moment can be missing among several.
            seen = pids if len(pids) == 1 else [*pids, *self._descendants()]
            if all(self._in_states(each, _STANDING) for each in seen):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0001)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1 if self._seal.process_namespace else pid, number)

    def _in_states(self, pid: int, states: bytes) -> bool:
        return all(state in states for state in processes.thread_states(self._seal.proc, pid))


def _answer(pending: bytearray, number: bytes) -> int | None:
    """The exit code in the answer to call `number`, or None. Every other line is forged or old, and dropped."""
    while b"\n" in pending:
        line, _, rest = pending.partition(b"\n")
        pending[:] = rest
        stated, _, code = line.partition(b" ")
        if bytes(stated) == number and code.isdigit():
            return min(int(code[:3]), 255)
    del pending[:-_MOST_PENDING]
    return None


def read_now(descriptor: int) -> bytes:
    """Read what has come; empty if nothing has, or if every writer has gone."""
    try:
        return os.read(descriptor, _CHUNK)
    except (BlockingIOError, ConnectionResetError):
        return b""


def reap_orphans(pid: int) -> None:
    """Reap ended processes whose parent has ended, but not the session's own process `pid`."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == pid:
                return
            os.waitpid(ended.si_pid, 0)
