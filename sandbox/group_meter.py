"""A worker's control group as its cells use it: the bound for the next program, and what the kernel says of the last.

The files are opened by the supervisor, which may write them; a cell has no right to open them, and none to move out.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from sandbox.types import MEBIBYTE

# Beside what a program may use by its limits: what the kernel keeps for its processes, and for the cell.
_SLACK_BYTES = 32 * MEBIBYTE
_BYTES_PER_PROCESS = MEBIBYTE // 4
_TEXT = 512


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """Descriptors of a control group's files.

    Attributes:
        join: what a process writes "0" to in order to step in, one for each hierarchy.
        usage, limit: bytes of memory, used and allowed.
        events: where the number of processes that the kernel has ended for want of memory is told.
        cpu: where the processor time of all that ever ran in the group is told, or None.
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
    """Bounds one run after the other.

    Args:
        files: of the group.
    """

    def __init__(self, files: GroupFiles) -> None:
        self._files = files
        self._killed, self._shared = 0, False
        self._cpu = self._own_cpu = 0.0

    def begin(self, limits: dict[str, Any], beside: int) -> None:
        """Make the group's bound that of a program with `limits`, over what the worker uses now.

        Args:
            limits: the request's.
            beside: bytes for what else runs in the group at the same time.
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
        """Whether the kernel has ended a process of the group for want of memory since `begin`."""
        return self._read_killed() > self._killed

    def cpu_seconds(self) -> float:
        """Processor time that the group has used since `begin`, the cell's left out; 0 where others ran in it too."""
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
