"""Add up what the processes of a run use together, including use that `/proc` does not show.

The resident size of a process does not include buffers of sockets and pipes, and pages of a shared mapping that were
dropped or unmapped. Process times do not include ended children that the kernel has forgotten. For such use, the
largest possible amount is counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.inside import processes
from sandbox.inside.isolation.syscall_filter import MOST_SHARED_BYTES
from sandbox.inside.processes import TICKS, Process, SharedMapping

if TYPE_CHECKING:
    from sandbox.inside.isolation.seal import Seal

_FEW_DESCRIPTORS = 32  # so few descriptors hold too little memory to check each of them
_PIPE_BYTES = 16 * processes.PAGE
_SOCKET_BYTES = 320 << 10  # the usual net.core.wmem_default, plus one message in transit
_MOST_MAPPINGS = 1 << 20  # bytes of text; enough for about ten thousand mappings
_EVERY_LOOKS = 8  # number of checks after which mappings are read again, even if sizes did not change
_BEYOND = 1 << 62


@dataclass(frozen=True, slots=True)
class Use:
    """The use of all processes of a run together, at one check.

    Attributes:
        cpu_s: processor time.
        memory_bytes: resident memory, plus the largest amount of memory that `/proc` may fail to show.
        removed_bytes: size of removed files of a scratch directory on the host that are still open or mapped.
    """

    cpu_s: float
    memory_bytes: int
    removed_bytes: int


class Account:
    """Counts the use of one run, from check to check.

    Args:
        seal: the worker's layers.
        allowed_memory: bytes above which shared pages are counted exactly, which takes longer.
        most_file_bytes: size of the largest file that a program can make.
    """

    def __init__(self, seal: Seal, allowed_memory: int, most_file_bytes: int) -> None:
        self._proc, self._seal = seal.proc, seal
        self._allowed, self._most_file_bytes = allowed_memory, most_file_bytes
        self._last: dict[int, Process] = {}
        self._lost = self._pending = 0  # ticks of children that nobody has waited for
        self._forgetful = False
        self._last_number = 0
        self._looks = 0
        self._longest: dict[tuple[bytes, bytes], int] = {}
        self._mapped: dict[int, list[SharedMapping]] = {}

    def look(self, run_processes: Sequence[Process], seconds: float, last_number: int) -> Use:
        """Add up the use at this check.

        Args:
            run_processes: the run's processes.
            seconds: time since the last check, in seconds.
            last_number: last process number of the run's namespace; 0 if it is unknown.
        """
        self._looks += 1
        ticks = self._ticks(run_processes, seconds, last_number)
        held, removed = self._held_by_descriptors(run_processes)
        shared, mapped_files = self._held_by_mappings(run_processes)
        parts = [(process.unshared, process.shared) for process in run_processes]
        memory = sum(part[0] for part in parts) + max(sum(part[1] for part in parts), shared) + held
        if memory > self._allowed and len(run_processes) > 1:
            parts = [processes.proportional_memory(self._proc, process) for process in run_processes]
            memory = sum(part[0] for part in parts) + max(sum(part[1] for part in parts), shared) + held
        self._last = {process.pid: process for process in run_processes}
        return Use(ticks / TICKS, memory, removed + mapped_files)

    def _ticks(self, run_processes: Sequence[Process], seconds: float, last_number: int) -> float:
        """Processor time of running processes, and of ended children, whether their parents waited for them or not."""
        numbers = {process.pid for process in run_processes}
        gone = sum(was.own_time + was.children_time for pid, was in self._last.items() if pid not in numbers)
        waited = 0
        for process in run_processes:
            before = self._last.get(process.pid)
            waited += process.children_time - (before.children_time if before else 0)
        # A parent may wait for a child after the parent was read, so the next check corrects the sum.
        self._lost += max(0, self._pending - max(0, waited - gone))
        self._pending = max(0, gone - waited)
        ended = max(0, last_number - self._last_number) + len(self._last) - len(run_processes) if last_number else 0
        self._last_number = last_number
        if not self._forgetful and (len(run_processes) > 1 or ended > 0) and self._looks % _EVERY_LOOKS in (1, 2, 4):
            self._forgetful = any(processes.ignores_children(self._proc, process.pid) for process in run_processes)
        used = 0.0
        if self._forgetful and ended > 0:
            # Since the last check, each ended process used at most the time that has passed.
            used = seconds * TICKS * min(ended, len(self._seal.processors))
        self._lost += int(used)
        return sum(process.own_time + process.children_time for process in run_processes) + self._lost

    def _held_by_descriptors(self, run_processes: Sequence[Process]) -> tuple[int, int]:
        """The most bytes that open descriptors can hold: first of memory, then of removed files on the host."""
        on_host = not self._seal.private_root
        count = sum(processes.count_descriptors(self._proc, process) for process in run_processes)
        if count <= (3 if on_host else _FEW_DESCRIPTORS):
            return 0, 0
        pipes, sockets = set(), set()
        removed: dict[tuple[int, int], int] = {}
        for process in run_processes:
            for path, target in processes.descriptors(self._proc, process):
                if target.startswith("pipe:"):
                    pipes.add(target)
                elif target.startswith("socket:"):
                    sockets.add(target)
                elif on_host and target.endswith(" (deleted)"):
                    self._note_removed(path, removed)
        if count <= _FEW_DESCRIPTORS:
            return 0, sum(removed.values())
        return len(pipes) * _PIPE_BYTES + len(sockets) * _SOCKET_BYTES, sum(removed.values())

    def _note_removed(self, path: str, removed: dict[tuple[int, int], int]) -> None:
        try:
            state = os.stat(path, dir_fd=self._proc)
        except OSError:
            return
        # Standard streams are not counted: they are anonymous files, and `output_bytes` limits them.
        if stat.S_ISREG(state.st_mode) and state.st_nlink == 0 and state.st_dev == self._device():
            removed[state.st_dev, state.st_ino] = state.st_blocks * 512

    def _device(self) -> int:
        return os.stat(self._seal.scratch).st_dev

    def _held_by_mappings(self, run_processes: Sequence[Process]) -> tuple[int, int]:
        """The most bytes that mappings can hold: of anonymous shared memory, then of removed files on the host."""
        longest: dict[bool, dict[tuple[bytes, bytes], int]] = {False: {}, True: {}}
        for process in run_processes:
            before = self._last.get(process.pid)
            expected = before.other_mappings if before else self._seal.base_other_mappings
            if process.other_mappings != expected or self._looks % _EVERY_LOOKS == process.pid % _EVERY_LOOKS:
                mappings = processes.mappings_without_name(self._proc, process, self._seal.scratch, _MOST_MAPPINGS)
                if mappings is None:
                    return _BEYOND, 0
                self._mapped[process.pid] = mappings
            for mapping in self._mapped.get(process.pid, ()):
                seen = self._longest[mapping.key] = max(self._longest.get(mapping.key, 0), mapping.length)
                longest[mapping.is_file][mapping.key] = seen
        removed = 0 if self._seal.private_root else _reckoned(longest[True], self._most_file_bytes)
        return _reckoned(longest[False], MOST_SHARED_BYTES), removed


def _reckoned(seen: dict[tuple[bytes, bytes], int], most: int) -> int:
    """The bytes to count: for a single object its longest length seen; for several objects `most` for each of them."""
    return sum(seen.values()) if len(seen) <= 1 else len(seen) * most
