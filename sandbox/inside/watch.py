"""Watch a running program: the time, memory, processes and disk space of all its processes together.

The watch reads `/proc` every few milliseconds. Between two checks a program can pass its limits. The kernel's
limits (`child._set_limits`, and a control group if there is one) bound how far it can pass them.
"""

from __future__ import annotations

import os
import resource
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.inside import processes
from sandbox.inside.isolation.account import Account
from sandbox.types import ProgramStatus

if TYPE_CHECKING:
    from sandbox.inside.isolation.seal import Seal

_FIRST_LOOK, _LATER_LOOKS = 0.005, 0.010  # seconds until a check; a check takes about 80 microseconds
_NEXT_LOOK_SOON = 0.002  # seconds, if memory grows so fast that it may pass its limit before the next usual check
_MAX_WALK = 4096  # number of processes in one check; far above any limit
_SCRATCH_ENTRY = 4096  # bytes that are counted for the name and the inode of a file


@dataclass(frozen=True, slots=True)
class Usage:
    """The processor time in seconds, and the highest number of resident bytes at any check."""

    cpu_s: float = 0.0
    memory_bytes: int = 0

    def joined(self, rusage: resource.struct_rusage) -> Usage:
        """Combine this usage with the kernel's report at the end of the process."""
        cpu = rusage.ru_utime + rusage.ru_stime
        return Usage(max(self.cpu_s, cpu), max(self.memory_bytes, rusage.ru_maxrss * 1024))


class Watch:
    """Watches one run.

    Args:
        cell: process number of the cell in the outer `/proc`; its descendants are the program's processes.
        seal: the worker's layers of isolation.
        limits: the request's limits.
        outputs: descriptors of standard output and error.
        channel: descriptor on which the supervisor asks to end the run early.
        ignored: process numbers, in the outer `/proc`, of those children of the cell that do not belong to the program.
        last_pid: descriptor of the cell's `ns_last_pid`, or None.
    """

    def __init__(
        self,
        cell: int,
        seal: Seal,
        limits: dict[str, Any],
        outputs: Sequence[int],
        channel: int,
        ignored: Sequence[bytes],
        last_pid: int | None,
    ) -> None:
        self.usage = Usage()
        self._ignored = ignored
        self._cell, self._seal, self._limits, self._outputs = cell, seal, limits, outputs
        self._channel, self._last_pid, self._meter = channel, last_pid, seal.meter
        self._account = Account(seal, self.allowed_memory, most_file_bytes(limits))
        self._looked = 0.0

    @property
    def allowed_memory(self) -> int:
        """The most resident bytes: the program's limit plus the worker's memory, with which every program starts."""
        return int(self._limits["memory_bytes"] + self._seal.base_memory)

    def until_end(self, pid: int, started: float) -> ProgramStatus | None:
        """Wait until process `pid` ends by itself (returns None) or must be ended (returns the reason).

        The reason is the limit that was passed, or `SIGNAL` if the supervisor asked for the end or went away.
        """
        deadline = started + self._limits["wall_s"]
        self._looked = started
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.register(self._channel, select.POLLIN)
            pause = _FIRST_LOOK
            while True:
                remaining = deadline - time.monotonic()
                ready = [descriptor for descriptor, _ in poll.poll(max(0.0, min(remaining, pause)) * 1000)]
                if handle in ready:
                    return None
                if ready:
                    return ProgramStatus.SIGNAL
                if remaining <= 0:
                    return ProgramStatus.WALL_TIME
                if self._seal.watch:
                    before = self.usage.memory_bytes
                    passed = self._look()
                    if passed is not None:
                        return passed
                    grown = self.usage.memory_bytes - before
                    hurry = self.usage.memory_bytes + grown > self.allowed_memory
                    pause = _NEXT_LOOK_SOON if hurry else _LATER_LOOKS
        finally:
            os.close(handle)

    def _look(self) -> ProgramStatus | None:
        now = time.monotonic()
        run_processes = [
            item for pid in self._descendants() if (item := processes.look_at(self._seal.proc, pid)) is not None
        ]
        if sum(process.threads for process in run_processes) > self._limits["processes"]:
            # Stop now, because a check of so many processes takes long, and more may start.
            return ProgramStatus.PROCESSES
        use = self._account.look(run_processes, now - self._looked, self._last_number())
        self._looked = now
        limits = self._limits
        cpu = use.cpu_s if self._meter is None else max(use.cpu_s, self._meter.cpu_s())
        self.usage = Usage(max(self.usage.cpu_s, cpu), max(self.usage.memory_bytes, use.memory_bytes))
        if use.memory_bytes > self.allowed_memory or (self._meter is not None and self._meter.ran_out()):
            return ProgramStatus.MEMORY
        if cpu > limits["cpu_s"]:
            return ProgramStatus.CPU_TIME
        if any(os.fstat(number).st_size > limits["output_bytes"] for number in self._outputs):
            return ProgramStatus.OUTPUT
        if not self._seal.private_root:
            # A directory that cannot be read counts as too full: a program may have made it unreadable.
            disk = _disk_usage(self._seal.scratch, limits["files"])
            if disk is None or disk + use.removed_bytes > limits["disk_bytes"]:
                return ProgramStatus.DISK
        return None

    def _last_number(self) -> int:
        """The process number that the cell's namespace assigned last; 0 if it is unknown."""
        return 0 if self._last_pid is None else int(os.pread(self._last_pid, 32, 0))

    def _descendants(self) -> list[int]:
        pids: list[int] = []
        waiting = [pid for pid in processes.children(self._seal.proc, self._cell) if b"%d" % pid not in self._ignored]
        while waiting and len(pids) < _MAX_WALK:
            pid = waiting.pop()
            pids.append(pid)
            waiting += processes.children(self._seal.proc, pid)
        return pids


def most_file_bytes(limits: dict[str, Any]) -> int:
    """The largest file that a program can make (RLIMIT_FSIZE)."""
    return int(max(limits["output_bytes"] + 1, limits["disk_bytes"]))


def _disk_usage(scratch: str, files: int) -> int | None:
    """Bytes used in a flat directory; None if it holds too many files or cannot be read."""
    total = 0
    try:
        with os.scandir(scratch) as entries:
            for number, entry in enumerate(entries):
                if number >= files:
                    return None
                try:
                    total += _SCRATCH_ENTRY + entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:
                    continue
    except OSError:
        return None
    return total
