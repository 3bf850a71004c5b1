"""The process that becomes the program: it gives up its privileges, then runs the program.

A cell forks such a process for each run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox.inside import notebook, program
from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.testing import tester
from sandbox.inside.watch import most_file_bytes
from sandbox.types import MEBIBYTE

SETUP_FAILED = 70  # exit code of a child that could not be sealed (sysexits.h: internal software error)
# The stack of a process grows downwards into a gap of at least 128 MiB that the kernel keeps free.
_STACK_BYTES = 120 * MEBIBYTE
_ADDRESS_SPACE_SLACK = 256 * MEBIBYTE  # for thread stacks and arenas that are reserved but never used
FIRST_FREE = 64  # above every descriptor number that is set up here
# Every process that answers calls gets the same limit. If the limit depended on the number of calls, a program could
# read its limit and learn that number.
_CALLS_CPU_SECONDS = 3600
_FIRST_TO_GO = b"1000"  # the kernel ends this process first if the machine or the control group is out of memory
_KINDS = {"run", "calls", "asserts", "execute", "notebook"}


class Become(BaseException):
    """Raised in a newly forked process to unwind the cell's frames, whose local variables hold facts about the tests.

    Attributes:
        work: function for the next step. It returns a function for the last step. The last step does not need the
            request, and never returns.
    """

    def __init__(self, work: Callable[[], Callable[[], NoReturn]]) -> None:
        super().__init__()
        self.work = work


def become_program(seal: Seal, request: dict[str, Any], descriptors: list[int], failure: int) -> Callable[[], NoReturn]:
    """Seal this process; return a function that runs the program of `request` and never returns.

    Args:
        seal: the worker's layers.
        request: `kind` (`run`, `calls`, `asserts`, `execute` or `notebook`) and `limits`. If `kind` is `execute`, it
            also contains `arguments`, `environment`, `address_space` (whether to limit the address space) and, unless
            there is no file, `program_name`. `session` is true if the process answers many calls.
        descriptors: descriptors of the program, then of standard input, output and error. If `kind` is `calls`
            or `asserts`, the channel's two pipes follow. In a session, two descriptors of `session_cell.py` follow.
        failure: descriptor of a pipe that tells the cell why sealing failed. The descriptor is closed before foreign
            code runs, so that no program can report its own failure as a failure of the sandbox.
    """
    failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)  # above the descriptors that are set up below
    try:
        assert request["kind"] in _KINDS, request["kind"]
        os.setsid()
        os.chdir(seal.scratch)
        source = read_all(descriptors[0])
        if "program_name" in request:
            _place_program(request, source)
        place_descriptors(descriptors[1:])
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
        if request["kind"] != "asserts":
            # The cell is not dumpable, but a program must be dumpable to own its /proc/self. Test code contains the
            # expected results, so its process stays not dumpable: other processes of its user must not read it.
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        go_first(seal, dumpable=request["kind"] != "asserts")
        restrict(seal, request, keep=len(descriptors) - 1)
    except BaseException:
        os.write(failure, traceback.format_exc()[-2000:].encode("utf-8", "replace"))
        os._exit(SETUP_FAILED)
    if request["kind"] == "execute":
        return functools.partial(_execute, request["arguments"], request["environment"])
    if request["kind"] == "asserts":
        return functools.partial(tester.run, source)
    if request["kind"] == "notebook":
        return notebook.run
    return functools.partial(program.run, source, answer_calls=request["kind"] == "calls")


def go_first(seal: Seal, dumpable: bool) -> None:
    """Make the kernel end this process and its children before other processes when memory runs out.

    Args:
        seal: the worker's layers.
        dumpable: whether the process stays dumpable. It must be dumpable for a moment to own its `/proc/self`.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError):  # `/proc` is read-only in some containers
        descriptor = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=seal.proc)
        try:
            os.write(descriptor, _FIRST_TO_GO)
        finally:
            os.close(descriptor)
    if not dumpable:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def place_descriptors(descriptors: list[int]) -> None:
    """Renumber `descriptors` to 0, 1, 2 and so on."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_FREE) for descriptor in descriptors]
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target)


def read_all(descriptor: int) -> bytes:
    """Read the whole file behind a descriptor, whatever its position."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _place_program(request: dict[str, Any], content: bytes) -> None:
    """Write the program to a file; mode 700 allows executing a compiled program."""
    with open(os.open(request["program_name"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "wb") as file:
        file.write(content)


def set_constant_limits() -> None:
    """Set the limits that are the same for every program. The worker calls this; its children inherit the limits."""
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 128),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _set_limits(seal: Seal, request: dict[str, Any]) -> None:
    limits = request["limits"]
    memory, cpu = limits["memory_bytes"], math.ceil(limits["cpu_s"])
    if request["kind"] == "calls" or request.get("session"):
        cpu = max(cpu, _CALLS_CPU_SECONDS)
    # The kernel's limit of processor time is one second above the program's limit. `Watch` is more precise; the
    # kernel ends a program that `Watch` checks too late.
    wanted = [
        (resource.RLIMIT_STACK, min(_STACK_BYTES, memory), 0),
        (resource.RLIMIT_CPU, cpu + 1, 1),
        (resource.RLIMIT_FSIZE, most_file_bytes(limits), 0),
        (resource.RLIMIT_NOFILE, limits["open_files"], 0),
    ]
    if request.get("address_space", True):
        # The limit of address space is generous, because honest programs reserve more than they use. `Watch` limits
        # resident memory.
        wanted.append((resource.RLIMIT_AS, seal.base_address_space + 2 * memory + _ADDRESS_SPACE_SLACK, 0))
    if seal.limit_processes:
        # This limit is above the limit in `watch.py`, so that `Watch` sees the excess first. The kernel also counts
        # the cell, the worker, a tester that runs with the program, and the idle cells of a shared sandbox with their
        # sealed processes.
        wanted.append((resource.RLIMIT_NPROC, limits["processes"] + 24, 0))
    for which, value, more in wanted:
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard - more)
        resource.setrlimit(which, (value, value + more))


def restrict(seal: Seal, request: dict[str, Any], keep: int) -> None:
    """Give up every privilege and every descriptor from `keep` upwards, for good."""
    if seal.resource_limits:
        _set_limits(seal, request)
    if seal.rules is not None:
        kernel.restrict_with_landlock(seal.rules)
    if seal.no_capabilities:
        kernel.drop_capabilities()
    if seal.close_descriptors:
        kernel.close_from(keep)
    if seal.syscalls is not None:
        seal.syscalls.load()


def _execute(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    # The interpreter ignores this signal, but other programs expect that it ends a writer whose reader has ended.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execve(arguments[0], arguments, environment)
    except OSError as problem:
        os.write(2, f"{arguments[0]}: {problem.strerror}\n".encode())
        os._exit(127)
