"""Call the few Linux system calls that Python does not offer, through ctypes.

If the kernel refuses a call, the function raises OSError with the name of the call.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWCGROUP = 0x02000000
CLONE_PARENT = 0x00008000
CLONE_ANY_NAMESPACE = (
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP
)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_BIND, MS_REC = 32, 1024, 4096, 16384
MS_PRIVATE, MS_RELATIME = 1 << 18, 1 << 21
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
ABOVE_ALL_DESCRIPTORS = 1 << 30  # the largest limit of the kernel (fs.nr_open)
LAST_CAPABILITY = 63  # some kernels know fewer capabilities; EINVAL, the error for an unknown one, is ignored

SIGCHLD = 17
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "close_range": 436, "landlock_restrict_self": 446, "mount_setattr": 442},
    "aarch64": {
        "clone": 220,
        "pivot_root": 41,
        "close_range": 436,
        "landlock_restrict_self": 446,
        "mount_setattr": 442,
    },
}
_MACHINE = os.uname().machine
_CLONE = _NUMBERS.get(_MACHINE, {}).get("clone", -1)
_libc = ctypes.CDLL(None, use_errno=True)
_libc_locked = ctypes.PyDLL(None, use_errno=True)
_prctl, _syscall, _capset = _libc_locked.prctl, _libc_locked.syscall, _libc_locked.capset
_mprotect, _madvise, _munmap, _mmap, _mremap = (
    _libc_locked[name] for name in ("mprotect", "madvise", "munmap", "mmap", "mremap")
)
_mmap.restype = _mremap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
_mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_mprotect.argtypes = _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
INTERPRETER_CODE = ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value or 0  # an address in the code
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS, _NO_FILE = 0x22, 2**64 - 1
_MADV_HUGEPAGE, _MADV_COLLAPSE, _MREMAP_MAYMOVE_FIXED = 14, 25, 3
_CAPABILITY_HEADER = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
_NO_CAPABILITIES = bytes(24)


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _number(call: str) -> int:
    if _MACHINE not in _NUMBERS:
        raise OSError(f"{call}: no system-call number is known for {_MACHINE}; known are {', '.join(_NUMBERS)}")
    return _NUMBERS[_MACHINE][call]


def unshare(flags: int) -> None:
    """Move this process into new namespaces. Only its later children enter a new process namespace."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def clone(flags: int) -> int:
    """Fork with one system call, into the new namespaces in `flags`; return the same as `os.fork`.

    Neither the C library nor Python sees this fork. So no hook of `os.register_at_fork` runs, and fewer pages are
    copied, which saves about half a millisecond. This is correct only in a process with a single thread, because the
    child has that thread at the same address. The child must seed `random` itself.
    """
    # PyDLL keeps the interpreter lock through the call, so the child's only thread holds the lock too.
    pid: int = _syscall(_CLONE, flags | SIGCHLD, 0, 0, 0, 0)
    return pid if pid >= 0 else _checked(pid, f"clone (call {_number('clone')})")


def prepared_clone(flags: int) -> Callable[[], int]:
    """Prepare `clone(flags)` for a process that forks often. A negative result says that the kernel refused.

    The prepared call touches only a third of the pages that `clone` touches, so fewer pages are copied in both
    processes.
    """
    return functools.partial(_syscall, _CLONE, flags | SIGCHLD, 0, 0, 0, 0)


def prepared_dumpable() -> Callable[[], int]:
    """Prepare `prctl(PR_SET_DUMPABLE, 1)`, as `prepared_clone` prepares `clone`. The prepared call cannot fail."""
    return functools.partial(_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0)


def prctl(option: int, value: int = 0) -> None:
    """Set one attribute of this process."""
    # This uses plain numbers and a function that was looked up before, because other uses of ctypes copy more pages
    # in each fork.
    if _prctl(option, value, 0, 0, 0) < 0:
        _checked(-1, f"prctl({option})")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount `source` on `target`."""

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    result = _libc.mount(encoded(source), encoded(target), encoded(kind), ctypes.c_ulong(flags), encoded(data))
    _checked(result, f"mount {source} on {target}")


def make_read_only(target: str, more: int = 0) -> None:
    """Make the mount on `target`, and all mounts below it, read-only and without set-uid programs.

    Args:
        target: a mount point.
        more: further attributes to set.
    """
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | more, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_number("mount_setattr")),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    if result >= 0 or ctypes.get_errno() != errno.ENOSYS:
        _checked(result, f"mount_setattr {target}")
        return
    # Before Linux 5.12, only the mount itself can be changed. Flags that the mount has must be set again,
    # otherwise the call clears them.
    present = os.statvfs(target).f_flag
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | (MS_NODEV if more & MOUNT_ATTR_NODEV else 0)
    flags |= present & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if present & os.ST_NOATIME:
        flags |= MS_NOATIME
    elif present & os.ST_RELATIME:
        flags |= MS_RELATIME
    mount(None, target, None, flags)


def unmount(target: str) -> None:
    """Detach the mount on `target`. The mount is hidden at once, and freed when no process uses it any more."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root_here() -> None:
    """Make the working directory (a mount point) the root of this mount namespace and detach the old root."""
    _checked(_libc.syscall(ctypes.c_long(_number("pivot_root")), b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def shrink_capability_bounds() -> None:
    """Make sure that no program executed later can gain a capability."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    _libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    _checked(_capset(_CAPABILITY_HEADER, _NO_CAPABILITIES), "capset")


def current_processor() -> int:
    """The number of the processor that this process runs on; negative if it is unknown."""
    number: int = _libc_locked.sched_getcpu()
    return number


def close_from(first: int) -> None:
    """Close every descriptor from `first` upwards."""
    os.closerange(first, ABOVE_ALL_DESCRIPTORS)  # a single system call


def set_seccomp_filter(program: bytes) -> None:
    """Load `program` (a `struct sock_fprog`) for this process and everything it starts."""
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl(no_new_privs)")
    _checked(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, 0, 0), "prctl(seccomp)")


def restrict_with_landlock(ruleset: int) -> None:
    """Enforce Landlock rules for this process. Each run calls this function; `landlockpy` would touch more pages."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if _syscall(_number("landlock_restrict_self"), ruleset, 0) < 0:
        _checked(-1, "landlock_restrict_self")


def overwrite_memory(address: int, length: int, text: bytes) -> None:
    """Overwrite a part of this process's memory with `text` (cut if it is too long) and then zeros."""
    ctypes.memmove(address, text[: length - 1].ljust(length, b"\0"), length)


def limit_malloc_arenas(count: int) -> None:
    """Let the C library reserve at most `count` heaps of 64 MiB of address space, instead of one for each thread."""
    _libc.mallopt(-8, count)  # M_ARENA_MAX


def trim_malloc() -> None:
    """Return the C library's unused memory to the kernel, so that no fork copies it."""
    _libc.malloc_trim(0)


def protect(address: int, length: int, write: bool = False, execute: bool = False) -> None:
    """Allow reading a part of this process's memory; allow writing and executing only if the arguments say so."""
    access = _PROT_READ | (_PROT_WRITE if write else 0) | (_PROT_EXEC if execute else 0)
    _checked(_mprotect(address, length, access), f"mprotect of {length} bytes")


def copy_code_to_huge_pages(address: int, length: int, page: int) -> None:
    """Replace code of this process with a copy on huge pages, in one step; do nothing if no huge pages are free.

    Args:
        address: the code's address, a multiple of `page`.
        length: the code's bytes, a multiple of `page`.
        page: bytes of a huge page.
    """
    reserved = _mmap(None, length + page, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, _NO_FILE, 0)
    if reserved == _NO_FILE:
        return
    copy = -(-reserved // page) * page
    _madvise(copy, length, _MADV_HUGEPAGE)
    ctypes.memmove(copy, address, length)
    # Check that the whole copy is on huge pages. A copy on small pages would make forks slower than before.
    huge = _madvise(copy, length, _MADV_COLLAPSE) == 0
    if huge:
        protect(copy, length, execute=True)
        moved = _mremap(copy, length, length, _MREMAP_MAYMOVE_FIXED, address)
        huge = moved == address
    _munmap(reserved, copy - reserved)
    _munmap(copy + length, reserved + page - copy)
    if not huge:
        _munmap(copy, length)
