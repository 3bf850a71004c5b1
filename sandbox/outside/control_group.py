"""Make a control group for each worker: of version 2 if a group is delegated, otherwise of version 1 if possible.

The kernel limits the memory and the number of processes of the group. `sandbox/inside/watch.py` also limits them. The
group also counts memory that is not part of the size of any process.

For version 2, a group is delegated if its `cgroup.subtree_control` contains `memory` and `pids`, and if the supervisor
may make new groups in it. The delegated group is the supervisor's group or the parent of that group. systemd delegates
a group if the unit sets `Delegate=yes` and the supervisor runs in a subgroup. Container runtimes delegate a group if
they give a container a separate group. For version 1, the supervisor must be allowed to make new groups below its own
groups in the hierarchies of `memory` and `pids`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sandbox.group_meter import GroupFiles
from sandbox.types import MEBIBYTE, Limits

_CONTROLLERS = {"memory", "pids"}
# The memory and processes of the worker, its cells, and a tester's cell that runs at the same time. The programs'
# memory and processes are added.
_WORKER_MEMORY, _WORKER_PROCESSES = 512 * MEBIBYTE, 64
_REMOVAL_SECONDS = 1.0  # a group can be removed once the kernel has reaped its last process
_PREFIX = "sandbox-"


@dataclass(frozen=True, slots=True)
class Delegated:
    """The parent groups for new groups.

    Attributes:
        memory, pids: parent group of the new groups in each hierarchy; in version 2, both are the same group.
        cpu: parent group in the hierarchy that counts processor time, if there is such a hierarchy.
        version: version of control groups, 1 or 2.
    """

    memory: Path
    pids: Path
    cpu: Path | None
    version: int

    @property
    def parents(self) -> list[Path]:
        """The parent groups, each listed once."""
        return list(dict.fromkeys([self.memory, self.pids, *([self.cpu] if self.cpu else [])]))


class ControlGroup:
    """The group of a worker.

    Args:
        parent: parent groups of the new group.
        name: name of the group, unique in its parent: `sandbox-`, the supervisor's process number, and more.

    Raises:
        OSError: the group cannot be made.
    """

    def __init__(self, parent: Delegated, name: str) -> None:
        self._memory, self._pids = parent.memory / name, parent.pids / name
        self._paths = [group / name for group in parent.parents]
        self.files: GroupFiles | None = None
        made: list[Path] = []
        try:
            for group in parent.parents:
                _sweep(group)
                (group / name).mkdir()
                made.append(group / name)
            self._limit_file = self._memory / ("memory.max" if parent.version == 2 else "memory.limit_in_bytes")
            self._limit_file.write_text(str(_WORKER_MEMORY + 2 * Limits().memory_bytes))
            # Forbid swapping, because memory that is swapped out would not count.
            for swap in ("memory.swap.max", "memory.swappiness"):
                with contextlib.suppress(OSError):
                    if (self._memory / swap).exists():
                        (self._memory / swap).write_text("0")
            self.allow(Limits())
            self.files = self._open(parent)
        except OSError:
            for path in reversed(made):
                path.rmdir()
            raise

    def _open(self, parent: Delegated) -> GroupFiles:
        """Open the files that the worker uses. The worker enters the group itself, before it starts any process."""
        second = parent.version == 2
        opened: list[int] = []

        def of(path: Path, flags: int) -> int:
            opened.append(os.open(path, flags | os.O_CLOEXEC))
            return opened[-1]

        try:
            cpu = None
            if parent.cpu is not None:
                name = "cpu.stat" if second else "cpuacct.usage"
                cpu = of(parent.cpu / self._memory.name / name, os.O_RDONLY)
            return GroupFiles(
                join=tuple(of(path / "cgroup.procs", os.O_WRONLY) for path in self._paths),
                usage=of(self._memory / ("memory.current" if second else "memory.usage_in_bytes"), os.O_RDONLY),
                limit=of(self._limit_file, os.O_WRONLY),
                events=of(self._memory / ("memory.events" if second else "memory.oom_control"), os.O_RDONLY),
                cpu=cpu,
            )
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise

    def allow(self, limits: Limits) -> None:
        """Raise the limit of processes if a program needs more. The cell bounds the memory of the program."""
        wanted = _WORKER_PROCESSES + 2 * limits.processes
        file = self._pids / "pids.max"
        # The limit is read each time, because another process that shares the worker may have raised it.
        allowed = file.read_text().strip() if file.exists() else "max"
        if allowed == "max" or int(allowed) < wanted:
            file.write_text(str(wanted))

    def close_descriptors(self) -> None:
        """Close this process's descriptors of `files`, once the worker has its own. Can be called twice."""
        if self.files is not None:
            for descriptor in self.files.all:
                os.close(descriptor)
        self.files = None

    def remove(self) -> None:
        """Remove the group of a worker that has ended."""
        self.close_descriptors()
        deadline = time.monotonic() + _REMOVAL_SECONDS
        for path in self._paths:
            while path.exists():
                try:
                    path.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.01)


def _sweep(parent: Path) -> None:
    """Remove the empty groups of supervisors that were killed."""
    for path in parent.glob(f"{_PREFIX}[0-9]*-*"):
        number = path.name.split("-")[1]
        if number.isdigit() and not os.path.exists(f"/proc/{number}"):
            with contextlib.suppress(OSError):
                path.rmdir()


def sweep_groups() -> None:
    """Remove the empty groups of supervisors that were killed, wherever this process could make a group."""
    parent = delegated_group()
    for group in parent.parents if isinstance(parent, Delegated) else ():
        _sweep(group)


def delegated_group(
    own_groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo")
) -> Delegated | str:
    """Return the parent groups for the workers' groups, or the reason why no groups can be made."""
    group_names = {}
    for line in own_groups.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        group_names.update(dict.fromkeys(controllers.split(","), group))
    second = _second_version(group_names, mounts)
    if isinstance(second, Delegated):
        return second
    first = _first_version(group_names, mounts)
    return first if isinstance(first, Delegated) else f"{second}; {first}"


def _mounted(mounts: Path, kind: str, controller: str = "") -> tuple[Path, str] | None:
    """Return the mount point of a hierarchy, and the group that is visible there."""
    for line in mounts.read_text().splitlines():
        place, _, system = line.partition(" - ")
        fields, (mounted_kind, _, *options) = place.split(), system.split()
        if mounted_kind == kind and (not controller or controller in options[-1].split(",")):
            return Path(fields[4]), fields[3]
    return None


def _place(mounted: tuple[Path, str], group: str) -> Path:
    """The directory of a group. In a container, the directories above the mounted group are removed from its name."""
    point, root = mounted
    inside = group.removeprefix(root) if root != "/" and group.startswith(root) else group
    return point / inside.lstrip("/")


def _writable(group: Path) -> bool:
    return os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)


def _second_version(group_names: dict[str, str], mounts: Path) -> Delegated | str:
    mounted = _mounted(mounts, "cgroup2")
    if mounted is None or "" not in group_names:
        return "no control groups of version 2 are mounted"
    group = _place(mounted, group_names[""])
    for candidate in (group, group.parent):
        if not candidate.is_relative_to(mounted[0]):
            break
        enabled = candidate / "cgroup.subtree_control"
        if not enabled.exists() or not set(enabled.read_text().split()) >= _CONTROLLERS:
            continue
        if _writable(candidate):
            return Delegated(candidate, candidate, candidate, 2)
    return f"memory and pids are not delegated to {group_names['']} or the group above it"


def _first_version(group_names: dict[str, str], mounts: Path) -> Delegated | str:
    groups: dict[str, Path] = {}
    for controller in ("memory", "pids", "cpuacct"):
        mounted = _mounted(mounts, "cgroup", controller)
        if mounted is not None and controller in group_names:
            place = _place(mounted, group_names[controller])
            if _writable(place):
                groups[controller] = place
    lacking = sorted(_CONTROLLERS - set(groups))
    if lacking:
        return f"no control group of version 1 can be made for {' and '.join(lacking)}"
    return Delegated(groups["memory"], groups["pids"], groups.get("cpuacct"), 1)
