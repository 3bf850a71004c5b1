"""The process that becomes the program: drop everything, seal, run. Forked from a cell, once per run."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import resource
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox.inside import program
from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.testing import tester
from sandbox.inside.watch import most_file_bytes
from sandbox.types import MEBIBYTE

SETUP_FAILED = 70  # exit code of a child that could not be sealed (sysexits.h: internal software error)
# The stack of a process grows downwards into a gap that the kernel keeps free, 128 MiB at least.
_STACK_BYTES = 120 * MEBIBYTE
_ADDRESS_SPACE_SLACK = 256 * MEBIBYTE  # thread stacks and arenas that are reserved and never touched
FIRST_FREE = 64  # a descriptor number above every one that is set up here
# The same for every process that answers calls: how many there will be is not for the program to know.
_CALLS_CPU_SECONDS = 3600
_FIRST_TO_GO = b"1000"  # when the machine, or the control group, runs out of memory
_KINDS = {"run", "calls", "asserts", "execute"}


class Become(BaseException):
    """Raised in a process that a cell has just forked: the frames of the cell, whose locals tell of the tests, unwind.

    Attributes:
        work: what the process does then. It returns what it is to go on with, once nothing of the request is needed.
    """

    def __init__(self, work: Callable[[], Callable[[], NoReturn]]) -> None:
        super().__init__()
        self.work = work


def become_program(seal: Seal, request: dict[str, Any], descriptors: list[int], failure: int) -> Callable[[], NoReturn]:
    """Seal this process; returns what runs what `request` asks for, and never returns itself.

    Args:
        seal: the worker's layers.
        request: `kind` (`run`, `calls`, `asserts` or `execute`), `limits`, and for `execute` `arguments`,
            `environment`, `address_space` (whether to limit it) and `program_name`.
        descriptors: program, standard input, output, error, and for calls the channel's two pipes.
        failure: a pipe to tell the cell that sealing failed. It is closed before foreign code runs, so that no
            program can pass its own failure off as the sandbox's.
    """
    failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)  # out of the way of what is set up below
    try:
        assert request["kind"] in _KINDS, request["kind"]
        os.setsid()
        os.chdir(seal.scratch)
        source = read_all(descriptors[0])
        if request["kind"] == "execute":
            _place_program(request, source)
        place_descriptors(descriptors[1:])
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
        if request["kind"] != "asserts":
            # The cell is not dumpable, but a program must own its /proc/self. Test code stays closed to other processes
            # of its user: it knows what is expected.
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
    return functools.partial(program.run, source, answer_calls=request["kind"] == "calls")


def go_first(seal: Seal, dumpable: bool) -> None:
    """Have the kernel end this process, and what it starts, before any other where memory runs out.

    Args:
        seal: the worker's layers.
        dumpable: whether the process is to be looked into afterwards; it must be for a moment to own its `/proc/self`.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError):  # a `/proc` that is read-only, as some containers have it
        descriptor = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=seal.proc)
        try:
            os.write(descriptor, _FIRST_TO_GO)
        finally:
            os.close(descriptor)
    if not dumpable:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def place_descriptors(descriptors: list[int]) -> None:
    """Make `descriptors` 0, 1, 2 and so on, whatever their numbers are now."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_FREE) for descriptor in descriptors]
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target)


def read_all(descriptor: int) -> bytes:
    """The whole file behind a descriptor, wherever its position is."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _place_program(request: dict[str, Any], content: bytes) -> None:
    """Put the program where its interpreter finds it; mode 700 lets a compiled one be executed."""
    with open(os.open(request["program_name"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "wb") as file:
        file.write(content)


def set_constant_limits() -> None:
    """Limits that are the same for every program; the worker sets them on itself and all inherit them."""
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
    memory, cpu = limits["memory_bytes"], math.ceil(limits["cpu_seconds"])
    if request["kind"] == "calls":
        cpu = max(cpu, _CALLS_CPU_SECONDS)
    # One second of processor time more than allowed: the watch is precise, this is for what it cannot see in time.
    wanted = [
        (resource.RLIMIT_STACK, min(_STACK_BYTES, memory), 0),
        (resource.RLIMIT_CPU, cpu + 1, 1),
        (resource.RLIMIT_FSIZE, most_file_bytes(limits), 0),
        (resource.RLIMIT_NOFILE, limits["open_files"], 0),
    ]
    if request.get("address_space", True):
        # Address space is cheap and honest programs reserve more than they touch; resident memory is watched.
        wanted.append((resource.RLIMIT_AS, seal.base_address_space + 2 * memory + _ADDRESS_SPACE_SLACK, 0))
    if seal.limit_processes:
        # A little above the watch's limit, so that a program at the limit is seen there; the cell and the worker
        # themselves, a tester beside the program and the idle cells of a shared sandbox, each with its sealed process,
        # count as well.
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
    try:
        os.execve(arguments[0], arguments, environment)
    except OSError as problem:
        os.write(2, f"{arguments[0]}: {problem.strerror}\n".encode())
        os._exit(127)
