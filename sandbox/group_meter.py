"""How a cell uses its worker's control group: it sets a memory limit for a run, and then reads the kernel's counts.

The supervisor opens the group's files, because only the supervisor may open them. A cell cannot leave the group.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from sandbox.types import MEBIBYTE

# Memory in addition to the program's limits: for the cell, and for the kernel's records of each process.
_SLACK_BYTES = 32 * MEBIBYTE
_BYTES_PER_PROCESS = MEBIBYTE // 4
_TEXT = 512


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """Descriptors of a control group's files.

    Attributes:
        join: files to which a process writes "0" to enter the group, one for each hierarchy.
        usage, limit: memory that the group uses and may use, in bytes.
        events: counts, such as the number of processes that the kernel killed because memory ran out.
        cpu: processor time of all processes that ever ran in the group; None if the kernel does not count it.
    """

    join: tuple[int, ...]
    usage: int
    limit: int
    events: int
    cpu: int | None

    @property
    def all(self) -> tuple[int, ...]:
        return (*self.join, self.usage, self.limit, self.events, *([] if self.cpu is None else [self.cpu]))


class GroupMeter:
    """Limits the memory of one run at a time, and measures what the run uses.

    Args:
        files: descriptors of the group's files.
    """

    def __init__(self, files: GroupFiles) -> None:
        self._files = files
        self._killed, self._shared = 0, False
        self._cpu = self._own_cpu = 0.0

    def begin(self, limits: dict[str, Any], beside: int) -> None:
        """Set the group's memory limit for a program: the memory that the worker uses now plus the program's limits.

        Args:
            limits: limits of the request.
            beside: memory for other programs that run in the group at the same time, in bytes.
        """
        self._killed, self._shared = self._read_killed(), beside > 0
        self._cpu, self._own_cpu = self._read_cpu(), time.process_time()
        allowed = (
            int(os.pread(self._files.usage, _TEXT, 0))
            + limits["memory_bytes"]
            + limits["disk_bytes"]
            + 2 * limits["output_bytes"]
            + limits["processes"] * _BYTES_PER_PROCESS
            + _SLACK_BYTES
            + beside
        )
        os.pwrite(self._files.limit, b"%d" % allowed, 0)

    def ran_out(self) -> bool:
        """Whether the kernel has killed a process of the group since `begin` because memory ran out."""
        return self._read_killed() > self._killed

    def cpu_s(self) -> float:
        """Processor time of the group since `begin`, without the cell's; 0 if other programs also ran in the group."""
        if self._files.cpu is None or self._shared:
            return 0.0
        return self._read_cpu() - self._cpu - (time.process_time() - self._own_cpu)

    def _read_killed(self) -> int:
        for line in os.pread(self._files.events, _TEXT, 0).splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
        return 0

    def _read_cpu(self) -> float:
        if self._files.cpu is None:
            return 0.0
        text = os.pread(self._files.cpu, _TEXT, 0)
        if text.startswith(b"usage_usec"):  # version 2
            return int(text.split(None, 2)[1]) / 1e6
        return int(text) / 1e9
