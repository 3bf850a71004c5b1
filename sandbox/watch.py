"""The watch over a running program: time, memory, processes and disk, over all of its processes together.

Looks every few milliseconds through `/proc`. A program can overshoot by what it manages between two looks; the kernel's
own limits (`child._set_limits`) bound that.
"""

from __future__ import annotations

import os
import resource
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.types import Status

if TYPE_CHECKING:
    from sandbox.child import Seal

_FIRST_LOOK, _LATER_LOOKS = 0.005, 0.010  # seconds; a look takes some 50 microseconds
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_MAX_WALK = 4096  # processes looked at; far above any limit
_SCRATCH_ENTRY = 4096  # bytes counted for a file's name and inode
# Fields of /proc/<pid>/stat after the command name (proc(5) numbers them from 3).
_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM, _THREADS, _RESIDENT = 11, 12, 13, 14, 17, 21


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds and the highest resident bytes seen."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0

    def joined(self, rusage: resource.struct_rusage) -> Usage:
        """With what the kernel reports at the end."""
        cpu = rusage.ru_utime + rusage.ru_stime
        return Usage(max(self.cpu_seconds, cpu), max(self.memory_bytes, rusage.ru_maxrss * 1024))


class Watch:
    """Watches one run.

    Args:
        cell: process number of the cell in the outer `/proc`; its descendants are the program's.
        seal: the worker's layers.
        limits: the request's limits.
        outputs: descriptors of standard output and error.
        channel: descriptor on which the supervisor says that the run is to be ended early.
        ignored: process numbers, in the outer `/proc`, of the cell's children that are not the program's.
    """

    def __init__(
        self,
        cell: int,
        seal: Seal,
        limits: dict[str, Any],
        outputs: Sequence[int],
        channel: int,
        ignored: Sequence[bytes],
    ) -> None:
        self.usage = Usage()
        self._ignored = ignored
        self._cell, self._seal, self._limits, self._outputs = cell, seal, limits, outputs
        self._channel = channel

    def until_end(self, pid: int, started: float) -> Status | None:
        """Wait until process `pid` ends by itself (None) or must be ended (why).

        The reason is the limit it passed, or `SIGNAL` where the supervisor asked for it or went away.
        """
        deadline = started + self._limits["wall_seconds"]
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.register(self._channel, select.POLLIN)
            pause = _FIRST_LOOK
            while True:
                left = deadline - time.monotonic()
                ready = [descriptor for descriptor, _ in poll.poll(max(0.0, min(left, pause)) * 1000)]
                if handle in ready:
                    return None
                if ready:
                    return Status.SIGNAL
                if left <= 0:
                    return Status.WALL_TIME
                if self._seal.watch:
                    passed = self._look()
                    if passed is not None:
                        return passed
                pause = _LATER_LOOKS
        finally:
            os.close(handle)

    def _look(self) -> Status | None:
        cpu = memory = tasks = 0
        descendants = self._descendants()
        for pid in descendants:
            fields = _stat(self._seal.proc, pid)
            if fields is None:
                continue
            cpu += sum(int(fields[index]) for index in (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM))
            memory += int(fields[_RESIDENT]) * _PAGE
            tasks += int(fields[_THREADS])
        limits = self._limits
        allowed = limits["memory_bytes"] + self._seal.base_memory
        if memory > allowed and len(descendants) > 1:
            # Only now is it worth the time to count pages that forked processes share once instead of in each.
            memory = sum(_proportional_memory(self._seal.proc, pid) for pid in descendants)
        self.usage = Usage(max(self.usage.cpu_seconds, cpu / _TICKS), max(self.usage.memory_bytes, memory))
        if memory > allowed:
            return Status.MEMORY
        if tasks > limits["processes"]:
            return Status.PROCESSES
        if cpu / _TICKS > limits["cpu_seconds"]:
            return Status.CPU_TIME
        if max(os.fstat(number).st_size for number in self._outputs) > limits["output_bytes"]:
            return Status.OUTPUT
        if not self._seal.private_root and _disk_usage(self._seal.scratch, limits["files"]) > limits["disk_bytes"]:
            return Status.DISK
        return None

    def _descendants(self) -> list[int]:
        found: list[int] = []
        waiting = [pid for pid in self.children(self._seal.proc, self._cell) if b"%d" % pid not in self._ignored]
        while waiting and len(found) < _MAX_WALK:
            pid = waiting.pop()
            found.append(pid)
            waiting += self.children(self._seal.proc, pid)
        return found

    @staticmethod
    def children(proc: int, pid: int) -> list[int]:
        """Process numbers of all children of `pid`, whichever of its threads started them."""
        found: list[int] = []
        try:
            directory = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
        except OSError:
            return found  # it has ended
        try:
            for thread in os.listdir(directory):
                found += [int(number) for number in _read(proc, f"{pid}/task/{thread}/children").split()]
        except OSError:
            pass  # it ended while being looked at; what it left is this cell's child now
        finally:
            os.close(directory)
        return found


def _read(proc: int, path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=proc)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _stat(proc: int, pid: int) -> list[bytes] | None:
    try:
        return _read(proc, f"{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None


def _proportional_memory(proc: int, pid: int) -> int:
    """Resident bytes of a process, each shared page divided by the number of those who share it."""
    try:
        for line in _read(proc, f"{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has ended
    return 0


def _disk_usage(scratch: str, files: int) -> int:
    """Bytes used in a flat directory; more than any limit where it holds too many files."""
    total = 0
    with os.scandir(scratch) as entries:
        for number, entry in enumerate(entries):
            if number >= files:
                return 1 << 62
            try:
                total += _SCRATCH_ENTRY + entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
