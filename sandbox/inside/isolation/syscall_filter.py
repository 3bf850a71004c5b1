"""The system-call allow-list, compiled once by libseccomp and loaded by every program's process in one call.

A call that is not listed fails with ENOSYS, so the C library uses an older call if there is one (clone instead of
clone3, read and write instead of io_uring). If a call is harmful only with some arguments, its arguments are
checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

from sandbox.inside.isolation import kernel
from sandbox.types import MEBIBYTE

# Calls that honest programs need, grouped by purpose. Deliberately absent: socket and its relatives (no network, no
# local sockets), setsockopt (buffers of megabytes, filters in the kernel), ptrace and process_vm_*, mount and namespace
# calls, System V and POSIX queues (their objects outlive a process), memfd_create (memory that no limit counts),
# inotify, io_uring, bpf, keyctl, perf, userfaultfd, mknod, and statx, which shows when a file of the sandbox was made;
# the C library works without statx.
_ALLOWED = tuple(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee
    copy_file_range creat close close_range fstat stat lstat newfstatat access faccessat
    faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat
    rmdir link linkat unlink unlinkat symlink symlinkat ftruncate fsync fdatasync sync_file_range fadvise64 umask
    statfs fstatfs dup dup2 dup3
    pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4 sendto recvfrom recvmsg
    shutdown getsockname getpeername getsockopt munmap mremap mprotect madvise msync mincore
    brk mlock munlock membarrier pkey_alloc pkey_free pkey_mprotect rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall pause alarm getitimer setitimer
    nanosleep gettimeofday time times timer_settime
    timer_gettime timer_getoverrun timer_delete exit exit_group wait4 waitid set_tid_address set_robust_list
    get_robust_list futex rseq arch_prctl sched_yield getpid gettid getppid getpgrp getpgid setpgid getsid setsid
    getuid geteuid getgid getegid getgroups getresuid getresgid getrlimit getrusage getpriority sched_getparam
    sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getaffinity getcpu
    capget uname sysinfo getrandom
    """.split()  # noqa: SIM905 (two hundred quoted words are harder to read)
)
# Calls that change a file's mode, times, length or attributes by its name or by a read-only descriptor. Landlock does
# not stop them; only read-only mounts do.
_METADATA_CALLS = tuple(
    """
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat truncate setxattr
    lsetxattr fsetxattr removexattr lremovexattr fremovexattr
    """.split()  # noqa: SIM905
)
# These calls are harmless if mounts are read-only and the scratch directory belongs to the cell.
_OWN_METADATA_CALLS = ("chmod", "fchmod", "fchmodat", "utime", "utimes", "futimesat", "utimensat", "truncate")
_ATTRIBUTE_CALLS = ("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr")
_CLOCK_CALLS = ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
_STATIC_CLOCKS = 0xFFFFFFF0  # bits that are set only in clock numbers of a given process or thread
# sendmsg can pass descriptors to another process. Descriptors that are in transit belong to no process, so the watch
# would not count them.
_PROCESS_CALLS = ["fork", "vfork", "execve", "execveat", "sendmsg"]
_SIGNAL_CALLS = ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal"]

# Allowed: F_DUPFD, F_{GET,SET}FD, F_{GET,SET}FL, setting record locks, F_GETOWN, F_DUPFD_CLOEXEC, F_GETPIPE_SZ,
# F_GET_SEALS.
# Absent: F_SETOWN and F_SETSIG (signals to other processes), F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ (memory without a
# limit), F_GETLK and F_OFD_GETLK (they show another program's lock on a system file).
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 6, 7, 9, 37, 38, 1030, 1032, 1034)
# Allowed: PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_{SET,GET}_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ,
# PR_{SET,GET}_NO_NEW_PRIVS, PR_GET_TID_ADDRESS, PR_SET_VMA. Absent: PR_SET_PDEATHSIG and PR_SET_DUMPABLE, which would
# weaken the sandbox.
_PRCTL_OPTIONS = (2, 3, 15, 16, 21, 23, 38, 39, 40, 0x53564D41)
# Allowed: TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE. The filter compares all 64 bits
# of a request, but the kernel ignores the upper half. So a program could evade a list of forbidden requests, but not
# this list of allowed requests.
_IOCTL_REQUESTS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x40049409)
# Calls with a list of allowed values for one argument: the call, the position of the argument, the values.
_ARGUMENT_LISTS = (("fcntl", 1, _FCNTL_COMMANDS), ("prctl", 0, _PRCTL_OPTIONS), ("ioctl", 1, _IOCTL_REQUESTS))
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
_CLONE_MASK = kernel.CLONE_ANY_NAMESPACE | _CLONE_THREAD
_O_ACCMODE, _O_TRUNC = 3, 0o1000
_MAP_TYPE, _MAP_PRIVATE, _MAP_SHARED, _MAP_ANONYMOUS = 0xF, 2, (1, 3), 0x20
# Pages of a shared mapping stay in memory when they are dropped or unmapped. Only the mapping's first length limits
# their number, so `account.py` counts `MOST_SHARED_BYTES` for each mapping.
MOST_SHARED_BYTES = 64 * MEBIBYTE
_AF_UNIX, _SOCK_STREAM, _SOCKET_TYPE_MASK = 1, 1, 0xF
_OPTIMIZE_TREE = 2  # a binary tree over call numbers: it loads in a third of the time of a list
_MAX_COMPLAINT = 1000  # bytes
_OWN_PID_PLACEHOLDER = 0x7ABCDEF1  # above every possible pid, so it cannot have another meaning


class SyscallFilter:
    """A compiled filter. `load` takes effect at once and for ever, for this thread and everything that it starts.

    Args:
        process_namespace: whether programs run in a process namespace. If not, a program may send signals only to
            itself, and may not start processes, because nothing could limit or find these processes.
        mounts: whether programs have a read-only root and a scratch directory of their own. If not, a program
            may not change a file's mode, time or length by name, since the file might be the host's. A program may not
            make directories either, because a scratch directory on the host is measured and emptied without recursion.

    Raises:
        OSError: libseccomp is missing or refuses.
    """

    def __init__(self, process_namespace: bool, mounts: bool) -> None:
        self._process_namespace = process_namespace
        self._code = _compiled_apart(process_namespace, mounts)
        self._prepare(self._code)

    def _prepare(self, code: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._buffer))

    def load(self) -> None:
        """Restrict this process."""
        if not self._process_namespace:
            self._prepare(_with_pid(self._code, os.getpid()))
        kernel.set_seccomp_filter(self._program)


def _with_pid(code: bytes, pid: int) -> bytes:
    patched = bytearray(code)
    for offset in range(0, len(patched), 8):
        if struct.unpack_from("I", patched, offset + 4)[0] == _OWN_PID_PLACEHOLDER:
            struct.pack_into("I", patched, offset + 4, pid)
    return bytes(patched)


def _compiled_apart(process_namespace: bool, mounts: bool) -> bytes:
    """Compile the filter in a separate process: otherwise each later fork would copy the memory of libseccomp.

    Raises:
        OSError: libseccomp is missing or refuses.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        failed = 1
        try:
            os.write(writing, _compile(process_namespace, mounts))  # some 4 KiB
            failed = 0
        except (ImportError, OSError, RuntimeError) as problem:
            os.write(writing, str(problem).encode("utf-8", "replace")[:_MAX_COMPLAINT])
        finally:
            os._exit(failed)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError(answer.decode("utf-8", "replace") or "the process that compiles the filter ended early")
    return answer


def _compile(process_namespace: bool, mounts: bool) -> bytes:
    import pyseccomp  # imported here because its import looks for libseccomp, which only a filter needs

    allow, refuse = pyseccomp.ALLOW, pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    arg, equal, masked = pyseccomp.Arg, pyseccomp.EQ, pyseccomp.MASKED_EQ

    def add(action: int, call: str, *conditions: object) -> None:
        try:
            rules.add_rule(action, call, *conditions)
        except OSError as problem:
            # Not every architecture has every call (aarch64 has no open, only openat).
            if problem.errno not in (errno.EINVAL, errno.EDOM, errno.EFAULT, errno.ENOENT):
                raise

    with contextlib.suppress(OSError):  # libseccomp before 2.5 has no tree; a list is slower but as strict
        rules.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _OPTIMIZE_TREE)
    for call in _ALLOWED:
        add(refuse if call in ("mkdir", "mkdirat") and not mounts else allow, call)
    for call in _METADATA_CALLS:
        add(allow if mounts and call in _OWN_METADATA_CALLS else refuse, call)
    # Programs that list files take this error as "no attributes", but ENOSYS as a failure.
    for call in _ATTRIBUTE_CALLS:
        add(pyseccomp.ERRNO(errno.ENOTSUP), call)
    # flock locks a file without the right to write to it, so two programs could communicate through a system file.
    add(pyseccomp.ERRNO(errno.ENOLCK), "flock")
    for call, flags in (("open", 1), ("openat", 2)):
        # O_RDONLY with O_TRUNC empties a file; before Linux 6.2 Landlock does not stop it.
        for access in (os.O_WRONLY, os.O_RDWR):
            add(allow, call, arg(flags, masked, _O_ACCMODE, access))
        add(allow, call, arg(flags, masked, _O_ACCMODE | _O_TRUNC, os.O_RDONLY))
    # Other modes of fallocate reserve space beyond a file's end. Neither the file's size nor RLIMIT_FSIZE counts it.
    add(allow, "fallocate", arg(1, equal, 0))
    for call in _CLOCK_CALLS:  # clocks of the program and the system; others show how long the cell has run
        add(allow, call, arg(0, masked, _STATIC_CLOCKS, 0))
    add(allow, "mmap", arg(3, masked, _MAP_TYPE, _MAP_PRIVATE))
    for kind in _MAP_SHARED:
        shared = arg(3, masked, _MAP_TYPE | _MAP_ANONYMOUS, kind | _MAP_ANONYMOUS)
        add(allow, "mmap", arg(3, masked, _MAP_TYPE | _MAP_ANONYMOUS, kind))
        add(allow, "mmap", arg(1, pyseccomp.LE, MOST_SHARED_BYTES), shared)
        add(pyseccomp.ERRNO(errno.ENOMEM), "mmap", arg(1, pyseccomp.GT, MOST_SHARED_BYTES), shared)
    for call in ("prlimit64", "sched_setaffinity"):  # a program may use these calls only on itself
        add(allow, call, arg(0, equal, 0))
    add(allow, "setpriority", arg(0, equal, 0), arg(1, equal, 0))
    for call, position, allowed in _ARGUMENT_LISTS:
        for number in allowed:
            add(allow, call, arg(position, equal, number))
    # Allow switching this attribute on, but not off. A child of a template (`template.py`) starts without it, and
    # switches it on.
    add(allow, "prctl", arg(0, equal, kernel.PR_SET_DUMPABLE), arg(1, equal, 1))
    # Allow only a pair of stream sockets, because a datagram socket could send to any abstract address.
    add(allow, "socketpair", arg(0, equal, _AF_UNIX), arg(1, masked, _SOCKET_TYPE_MASK, _SOCK_STREAM))
    # A thread must share its process's descriptors, because the watch reads them per process.
    add(allow, "clone", arg(0, masked, _CLONE_MASK | _CLONE_FILES, _CLONE_THREAD | _CLONE_FILES))
    if process_namespace:
        add(allow, "clone", arg(0, masked, _CLONE_MASK, 0))
        for call in (*_PROCESS_CALLS, *_SIGNAL_CALLS):
            add(allow, call)
    else:
        for call in _PROCESS_CALLS:
            add(refuse, call)
        for call in ("kill", "tgkill"):
            add(allow, call, arg(0, equal, _OWN_PID_PLACEHOLDER))
    return _exported(pyseccomp, rules)


def _exported(pyseccomp: object, rules: object) -> bytes:
    """Export the filter's instructions, each a `struct sock_filter`."""
    descriptor = os.memfd_create("filter")
    try:
        # pyseccomp declares this call, but has no method for it.
        status = pyseccomp._libseccomp.seccomp_export_bpf(rules._filter, descriptor)  # type: ignore[attr-defined]
        if status < 0:
            raise OSError(-status, f"seccomp_export_bpf: {os.strerror(-status)}")
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)
