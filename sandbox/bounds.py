"""How each limit is enforced: strictly, or so that a program can pass the limit between two checks of the watch."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.types import Isolation, Layer


@dataclass(frozen=True, slots=True)
class LimitHold:
    """How one limit is enforced.

    Attributes:
        limit: name of the limit.
        is_bound: True if no program can pass the limit; False if a program can pass it until the watch checks again.
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
        LimitHold("memory", True, "a control group: memory_bytes, plus disk_bytes, twice output_bytes and 48 MiB")
        if group
        else LimitHold(
            "memory",
            False,
            "checked every 10 ms; a program can pass it between two checks, by a factor of 2 to 3 if twelve "
            "processes allocate at once on a busy machine"
            if may_fork
            else "checked every 10 ms; one process, with an address space of twice the limit plus 256 MiB",
        ),
        LimitHold("processes", True, "the kernel's own count, at most 24 above the limit")
        if counted or group
        else LimitHold("processes", False, "programs cannot start processes; their threads are counted every 10 ms"),
        LimitHold("processor time", True, "time of all processes of a control group, checked every 10 ms")
        if group
        else LimitHold(
            "processor time",
            False,
            "checked every 10 ms; ended children that nobody waited for count with the most they can have used"
            if may_fork
            else "checked every 10 ms; the kernel's limit is one second higher",
        ),
        LimitHold("disk", True, "a file system of that size in memory")
        if Layer.PRIVATE_ROOT in active
        else LimitHold("disk", False, "checked every 10 ms; the kernel limits the size of each file"),
        LimitHold("output", True, "a file of at most disk_bytes during a test, cut to output_bytes afterwards"),
    )
