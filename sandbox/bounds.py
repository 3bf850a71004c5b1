"""How each limit is enforced.

Some limits are strict. Others are only checked at intervals, so a program can exceed them between two checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.types import Isolation, Layer


@dataclass(frozen=True, slots=True)
class LimitHold:
    """How one limit is enforced.

    Attributes:
        limit: name of the limit.
        is_bound: True if no program can pass the limit; False if a program can pass it until the next check.
        how: text for people, with the amount that a program may use beyond the limit.
    """

    limit: str
    is_bound: bool
    how: str

    @property
    def kind(self) -> str:
        return "bound" if self.is_bound else "promise"


def bounds(isolation: Isolation) -> tuple[LimitHold, ...]:
    """How each limit is enforced while `isolation` is in force."""
    active = set(isolation.active)
    group = Layer.CGROUP in active
    counted = bool(active & {Layer.OWN_UID, Layer.USER_NAMESPACE})
    may_fork = Layer.PROCESS_NAMESPACE in active
    return (
        LimitHold("memory", True, "a control group, limited to memory_bytes + disk_bytes + 2 x output_bytes + 48 MiB")
        if group
        else LimitHold(
            "memory",
            False,
            "checked every 10 ms; a program can pass it between two checks, by a factor of 2 to 3 if twelve "
            "processes allocate at once on a busy machine"
            if may_fork
            else "checked every 10 ms; the only process has an address space of at most twice the limit plus 256 MiB",
        ),
        LimitHold("processes", True, "counted by the kernel, which allows at most 24 more than the limit")
        if counted or group
        else LimitHold("processes", False, "programs cannot start processes; their threads are counted every 10 ms"),
        LimitHold("processor time", True, "time of all processes of a control group, checked every 10 ms")
        if group
        else LimitHold(
            "processor time",
            False,
            "checked every 10 ms; if a child process ended and its parent did not wait for it, the largest processor "
            "time that it can have used is counted"
            if may_fork
            else "checked every 10 ms; the limit that the kernel enforces is one second higher",
        ),
        LimitHold("disk", True, "a file system in memory, whose size is the limit")
        if Layer.PRIVATE_ROOT in active
        else LimitHold("disk", False, "checked every 10 ms; the kernel limits the size of each file"),
        LimitHold("output", True, "a file of at most disk_bytes during a test, cut to output_bytes afterwards"),
    )
