"""What every program of a worker is sealed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.inside.isolation.syscall_filter import SyscallFilter

if TYPE_CHECKING:
    from sandbox.group_meter import GroupMeter


@dataclass(frozen=True, slots=True)
class Seal:
    """What every program of a worker is sealed with, prepared once in the worker.

    Attributes:
        scratch: working directory of programs.
        private_root, process_namespace, private_proc: which parts of the namespaces there are.
        rules: descriptor of the Landlock rules (at least `FIRST_FREE`), or None.
        syscalls: system-call filter, or None.
        resource_limits, watch, no_capabilities, close_descriptors, descendant_kill: False only where a test proves
            that an attack bites without.
        limit_processes: whether RLIMIT_NPROC counts this worker's processes only.
        base_address_space, base_memory: bytes that the worker itself has reserved and resident; every child starts
            with as much, which is not counted against its limits (once, not once per process).
        base_other_mappings: those bytes of its address space that are not private and writable.
        proc: descriptor of a `/proc` that shows this worker's processes.
        processors: those that programs may run on.
        meter: of the worker's control group, or None.
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
