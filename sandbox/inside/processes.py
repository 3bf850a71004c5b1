"""Read a program's processes from `/proc`: their numbers, time, memory and descriptors.

Every function takes a descriptor of a `/proc` that shows the processes. A process that ends while it is read is not
counted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat after the command name (proc(5) numbers them from 3).
_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM, _THREADS = 11, 12, 13, 14, 17
_CHUNK = 1 << 16
_SIGCHLD = 1 << 16  # the bit of SIGCHLD in a mask of signals


@dataclass(frozen=True, slots=True)
class Process:
    """The state of a process at one check.

    Attributes:
        pid: process number.
        own_time, children_time: processor time of the process, and of the children that it has waited for, in ticks.
        threads: number of threads.
        living: path below `/proc` of a thread that has not ended. The first thread may have ended, and then it shows no
            memory.
        unshared, shared: resident bytes of private memory, and of files and shared mappings.
        other_mappings: bytes of address space that is not private and writable.
    """

    pid: int
    own_time: int
    children_time: int
    threads: int
    living: str
    unshared: int
    shared: int
    other_mappings: int


@dataclass(frozen=True, slots=True)
class SharedMapping:
    """A mapping, without a file name, of memory that processes can share.

    Attributes:
        key: device and inode of the mapped object.
        is_file: True for a removed file, False for anonymous memory.
        length: bytes from the object's beginning to the mapping's end.
    """

    key: tuple[bytes, bytes]
    is_file: bool
    length: int


def _read(proc: int, path: str, most: int = _CHUNK) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=proc)
    try:
        text = os.read(descriptor, _CHUNK)
        while text and len(text) < most and (more := os.read(descriptor, _CHUNK)):
            text += more
        return text
    finally:
        os.close(descriptor)


def _list(proc: int, path: str) -> list[str]:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    try:
        return os.listdir(directory)
    finally:
        os.close(directory)


def children(proc: int, pid: int) -> list[int]:
    """Process numbers of all children of `pid`, whichever of its threads started them."""
    child_pids: list[int] = []
    try:
        for thread in _list(proc, f"{pid}/task"):
            child_pids += [int(number) for number in _read(proc, f"{pid}/task/{thread}/children").split()]
    except OSError:
        pass  # `pid` has ended meanwhile; its children are the cell's children now
    return child_pids


def look_at(proc: int, pid: int) -> Process | None:
    """Read a process; None if it has ended."""
    try:
        fields = _read(proc, f"{pid}/stat", 0).rpartition(b")")[2].split()
        threads, living = int(fields[_THREADS]), str(pid)
        size, resident, shared, data = _memory(proc, living)
        if resident == 0 and threads > 1:
            for thread in _list(proc, f"{pid}/task"):
                living = f"{pid}/task/{thread}"
                size, resident, shared, data = _memory(proc, living)
                if resident:
                    break
    except OSError:
        return None
    return Process(
        pid=pid,
        own_time=int(fields[_USER]) + int(fields[_SYSTEM]),
        children_time=int(fields[_CHILDREN_USER]) + int(fields[_CHILDREN_SYSTEM]),
        threads=threads,
        living=living,
        unshared=(resident - shared) * PAGE,
        shared=shared * PAGE,
        other_mappings=(size - data) * PAGE,
    )


def _memory(proc: int, living: str) -> tuple[int, int, int, int]:
    size, resident, shared, _, _, data, _ = map(int, _read(proc, f"{living}/statm", 0).split())
    return size, resident, shared, data


def proportional_memory(proc: int, process: Process) -> tuple[int, int]:
    """Resident bytes, private and shared. Each page is divided by the number of processes that share the page."""
    try:
        text = _read(proc, f"{process.living}/smaps_rollup")
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    except OSError:  # the process cannot be read, so count all of its memory
        return process.unshared, process.shared
    parts = {line.split()[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(b"Pss")}
    anonymous = parts.get(b"Pss_Anon:", parts.get(b"Pss:", 0))
    return anonymous, parts.get(b"Pss:", 0) - anonymous


def ignores_children(proc: int, pid: int) -> bool:
    """Whether a process ignores SIGCHLD: the kernel then forgets its ended children and their processor time."""
    try:
        for line in _read(proc, f"{pid}/status").splitlines():
            if line.startswith(b"SigIgn:"):
                return bool(int(line.split()[1], 16) & _SIGCHLD)
    except OSError:
        pass
    return False


def count_descriptors(proc: int, process: Process) -> int:
    """Number of open descriptors of a process; 0 if the process may not be read."""
    try:
        # Before Linux 6.2, the directory's size is 0, so list the directory instead.
        return os.stat(f"{process.living}/fd", dir_fd=proc).st_size or len(_list(proc, f"{process.living}/fd"))
    except OSError:
        return 0


def descriptors(proc: int, process: Process) -> Iterator[tuple[str, str]]:
    """List the open descriptors. Yield the path below `/proc` and the target of each descriptor."""
    try:
        for number in _list(proc, f"{process.living}/fd"):
            path = f"{process.living}/fd/{number}"
            yield path, os.readlink(path, dir_fd=proc)
    except OSError:
        return


def mappings_without_name(proc: int, process: Process, scratch: str, most: int) -> list[SharedMapping] | None:
    """Mappings of anonymous shared memory, and of files that have been removed from `scratch`.

    None if the list of mappings has `most` bytes of text or more: no honest program has so many mappings.
    """
    try:
        text = _read(proc, f"{process.living}/maps", most)
    except OSError:
        return []
    if len(text) >= most:
        return None
    mappings = []
    in_scratch = os.fsencode(scratch) + b"/"
    for line in text.splitlines():
        if not line.endswith(b" (deleted)"):
            continue
        addresses, _, offset, device, inode, path = line.split(None, 5)
        is_file = path.startswith(in_scratch)
        if is_file or path == b"/dev/zero (deleted)":
            start, end = (int(number, 16) for number in addresses.split(b"-"))
            mappings.append(SharedMapping((device, inode), is_file, int(offset, 16) + end - start))
    return mappings


def inner_number(proc: int, pid: int) -> int:
    """The number of a process in its own process namespace; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in _read(proc, f"{pid}/status", 0).splitlines():
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
    return 0


def thread_states(proc: int, pid: int) -> bytes:
    """The states of a process's threads, a letter each (proc(5)); empty if the process has ended."""
    states = b""
    try:
        threads = _list(proc, f"{pid}/task")
    except OSError:
        return states
    for thread in threads:
        with contextlib.suppress(OSError):  # the thread has ended
            states += _read(proc, f"{pid}/task/{thread}/stat", 0).rpartition(b")")[2].split(None, 1)[0]
    return states
