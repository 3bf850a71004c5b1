"""Which limits the kernel holds a program to here, and which the watch looks after: bounds and promises."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.types import Isolation, Layer


@dataclass(frozen=True, slots=True)
class LimitHold:
    """How one limit is held.

    Attributes:
        limit: what it limits.
        is_bound: whether nothing can pass it; otherwise a program may, for as long as it takes to be seen.
        how: in words, with what may be used beyond the limit.
    """

    limit: str
    is_bound: bool
    how: str

    @property
    def kind(self) -> str:
        return "bound" if self.is_bound else "promise"


def bounds(isolation: Isolation) -> tuple[LimitHold, ...]:
    """How each limit is held where `isolation` is in force."""
    active = set(isolation.active)
    group = Layer.CGROUP in active
    counted = bool(active & {Layer.OWN_UID, Layer.USER_NAMESPACE})
    may_fork = Layer.PROCESS_NAMESPACE in active
    return (
        LimitHold(
            "memory", True, "a control group: memory_bytes, and disk_bytes, twice output_bytes and 48 MiB beside it"
        )
        if group
        else LimitHold(
            "memory",
            False,
            "looked at every 10 ms; what is allocated until then passes it, by a factor of 2 to 3 where twelve "
            "processes allocate at once on a busy machine"
            if may_fork
            else "looked at every 10 ms; one process, of an address space of twice the limit and 256 MiB",
        ),
        LimitHold("processes", True, "the kernel's own count, at most 24 above the limit")
        if counted or group
        else LimitHold("processes", False, "programs start none; their threads are looked at every 10 ms"),
        LimitHold("processor time", True, "what all processes of a control group have used, looked at every 10 ms")
        if group
        else LimitHold(
            "processor time",
            False,
            "looked at every 10 ms; children that nobody waits for and that end in between are reckoned with"
            if may_fork
            else "looked at every 10 ms, and the kernel's limit of a second more",
        ),
        LimitHold("disk", True, "a file system of that size in memory")
        if Layer.PRIVATE_ROOT in active
        else LimitHold("disk", False, "looked at every 10 ms; each file is held to the limit"),
        LimitHold("output", True, "while a test runs a file as large as disk_bytes, afterwards cut to output_bytes"),
    )
