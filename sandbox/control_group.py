"""A control group (version 2) around each worker, where the machine delegates one.

It is the kernel's own bound on memory and processes, behind the watch. Delegated means: in the supervisor's own group,
or in the one above it, `memory` and `pids` are in `cgroup.subtree_control` and groups can be made. systemd does that
with `Delegate=yes` and the supervisor in a subgroup; so do container runtimes that give a container its own group.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sandbox.types import MEBIBYTE, Limits

_CONTROLLERS = {"memory", "pids"}
# Beside the programs' own: the worker, its cells, and a tester's cell that runs at the same time.
_WORKER_MEMORY, _WORKER_PROCESSES = 512 * MEBIBYTE, 64
_REMOVAL_SECONDS = 1.0  # a group can be removed once the kernel has reaped its last process


class ControlGroup:
    """One worker's group.

    Args:
        parent: the delegated group to make it in.
        name: its name, unique among its neighbours.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, name: str) -> None:
        self._path = parent / name
        self._path.mkdir()
        try:
            self.allow(Limits())
            # The worker steps in by itself, through this descriptor, before it starts anything.
            self.join_descriptor = os.open(self._path / "cgroup.procs", os.O_WRONLY)
        except OSError:
            self._path.rmdir()
            raise

    def allow(self, limits: Limits) -> None:
        """Make room for a program with `limits`, in case there is less."""
        for name, wanted in (
            ("memory.max", _WORKER_MEMORY + 2 * limits.memory_bytes),
            ("pids.max", _WORKER_PROCESSES + 2 * limits.processes),
        ):
            file = self._path / name
            # Read each time: another process that shares the worker may have raised it.
            allowed = file.read_text().strip() if file.exists() else "max"
            if allowed == "max" or int(allowed) < wanted:
                file.write_text(str(wanted))

    def close_descriptor(self) -> None:
        """Close `join_descriptor`, once the worker has its own; idempotent."""
        if self.join_descriptor >= 0:
            os.close(self.join_descriptor)
        self.join_descriptor = -1

    def remove(self) -> None:
        """Remove the group of a worker that has ended."""
        self.close_descriptor()
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while self._path.exists():
            try:
                self._path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)


def delegated_group(
    own_groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mounts")
) -> Path | str:
    """The group that workers' groups can be made in, or the reason why there is none."""
    mounted = [line.split()[1] for line in mounts.read_text().splitlines() if line.split()[2] == "cgroup2"]
    own = [line.removeprefix("0::") for line in own_groups.read_text().splitlines() if line.startswith("0::")]
    if not mounted or not own:
        return "no control groups of version 2 are mounted"
    root = Path(mounted[0])
    group = root / own[0].lstrip("/")
    for candidate in (group, group.parent):
        if not candidate.is_relative_to(root):
            break
        enabled = candidate / "cgroup.subtree_control"
        if not enabled.exists() or not set(enabled.read_text().split()) >= _CONTROLLERS:
            continue
        if os.access(candidate, os.W_OK) and os.access(candidate / "cgroup.procs", os.W_OK):
            return candidate
    return f"memory and pids are not delegated to {own[0]} or the group above it"
