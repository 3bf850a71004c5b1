"""The layers that seal every program of a worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sandbox.inside.isolation.syscall_filter import SyscallFilter

if TYPE_CHECKING:
    from sandbox.group_meter import GroupMeter


@dataclass(frozen=True, slots=True)
class Seal:
    """The layers that seal every program of a worker. The worker prepares them once.

    Attributes:
        scratch: working directory of programs.
        private_root, process_namespace, private_proc: whether each of these exists.
        rules: descriptor of the Landlock rules (at least `FIRST_FREE`), or None.
        syscalls: system-call filter, or None.
        resource_limits, watch, no_capabilities, close_descriptors, descendant_kill: whether the layer is in force. A
            layer is left out only in tests that show that an attack works without it.
        limit_processes: whether RLIMIT_NPROC counts this worker's processes only.
        base_address_space, base_memory: reserved and resident bytes of the worker. Every child starts with this memory,
            so it is added to a program's limits, once per program.
        base_other_mappings: bytes of the worker's address space that are not private and writable.
        proc: descriptor of a `/proc` that shows this worker's processes.
        processors: processors that programs may run on.
        meter: meter of the worker's control group, or None.
    """

    scratch: str
    private_root: bool
    process_namespace: bool
    private_proc: bool
    rules: int | None
    syscalls: SyscallFilter | None
    resource_limits: bool
    limit_processes: bool
    watch: bool
    no_capabilities: bool
    close_descriptors: bool
    descendant_kill: bool
    base_address_space: int
    base_memory: int
    base_other_mappings: int
    proc: int
    processors: frozenset[int]
    meter: GroupMeter | None = None

    def with_meter(self, meter: GroupMeter | None) -> Seal:
        """The same layers with the meter of another control group."""
        return replace(self, meter=meter)
