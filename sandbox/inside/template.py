"""Sealed processes. They do not run programs; they fork the processes that run programs.

Sealing a process takes longer than running a small program. So it is done once, and forked processes inherit the seal:

- The *sealed process* of a cell has given up every privilege and has never seen a program. For each program it forks
  one process. If the program has only one test, this process runs the test; otherwise the process is a template.
- A *template* holds one compiled program. It never runs the program, but forks a process for each test.

All forked processes are children of the cell. A test cannot read or change a template or a sealed process: they are not
dumpable, and the system-call list has no ptrace. If a test kills or stops one of these processes, or leaves a process
or file behind, the cell ends them all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import struct
import traceback
import types
from collections.abc import Callable, Sequence, Set
from typing import Any, NoReturn

from sandbox.inside import child, program
from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal

_CONTROL = 3  # descriptor of a sealed process's socket
# If a program takes longer than this to compile, each test compiles the program, within the time of the test. Both
# timeouts together must stay well below the extra time that the supervisor gives a cell (`cell_handle.py`). Otherwise a
# slow program would look like a failure of the sandbox.
_READY_SECONDS = 2.0
_FORK_SECONDS = 1.0  # if a process takes longer, a test has stopped it
_MAX_MESSAGE = 64
_TEMPLATE, _TEST, _PING = b"template", b"test", b"ping"
# A message carries descriptors. Two descriptors start a template: the template's socket, the program. Three start a
# test of a template: standard input, output, error. Four start a test without a template: the program, standard input,
# output, error.
_TWO, _THREE, _FOUR = (struct.Struct(f"{count}i") for count in (2, 3, 4))


class TemplateLost(Exception):
    """A sealed process did not answer."""


class _Forker:
    """The cell's handle of a process that forks on request."""

    def __init__(self, control: socket.socket, pid: int, ready_s: float = _READY_SECONDS) -> None:
        self._control, self.pid = control, pid
        self._control.settimeout(min(_READY_SECONDS, ready_s))
        try:
            ready = self._control.recv(_MAX_MESSAGE)
        except OSError:
            ready = b""
        if ready != b"ready":
            self.close()
            raise TemplateLost
        self._control.settimeout(_FORK_SECONDS)

    def _fork(self, message: bytes, descriptors: bytes) -> int:
        try:
            self._control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            answer = self._control.recv(_MAX_MESSAGE)
        except OSError:
            raise TemplateLost from None
        if not answer:
            raise TemplateLost
        return int(answer)

    def close(self) -> None:
        """End and reap the process; may be called twice."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class SealedProcess(_Forker):
    """The cell's handle of its sealed process.

    Args:
        seal: the worker's layers.
        request: request whose limits hold for every process that is forked.

    Raises:
        TemplateLost: the process could not be sealed.
    """

    def __init__(self, seal: Seal, request: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = kernel.clone(0)
        if pid == 0:
            raise child.Become(functools.partial(_become_sealed, seal, request, theirs.detach()))
        theirs.close()
        super().__init__(ours, pid)

    def fork_test(self, program_descriptor: int, streams: Sequence[int]) -> int:
        """Start a program's test on `streams` (standard input, output, error); return the process number of the test.

        Raises:
            TemplateLost: the sealed process is gone or stopped.
        """
        return self._fork(_TEST, _FOUR.pack(program_descriptor, *streams))

    def answers(self) -> bool:
        """Whether the process is alive, not stopped, and no pending signal will end or stop it.

        A signal takes effect a moment after it is sent, but before the process answers a message.
        """
        try:
            self._control.send(_PING)
            return self._control.recv(_MAX_MESSAGE) == _PING
        except OSError:
            return False

    def fork_template(self, program_descriptor: int, ready_s: float) -> Template:
        """Start a template of a program.

        Raises:
            TemplateLost: the sealed process is gone or stopped, or the program takes too long to compile.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = self._fork(_TEMPLATE, _TWO.pack(theirs.fileno(), program_descriptor))
        return Template(ours, pid, ready_s)


class Template(_Forker):
    """The cell's handle of a template."""

    def fork_test(self, streams: Sequence[int]) -> int:
        """Start a test on `streams` (standard input, output, error); return the process number of the test.

        Raises:
            TemplateLost: the template is gone or stopped.
        """
        return self._fork(_TEST, _THREE.pack(*streams))


def _become_sealed(seal: Seal, request: dict[str, Any], control: int) -> Callable[[], NoReturn]:
    try:
        # Tests start in this directory. When the cell replaces the directory, it ends these processes.
        os.chdir(seal.scratch)
        child.place_descriptors([0, 1, 2, control])
        child.go_first(seal, dumpable=False)
        child.restrict(seal, request, keep=_CONTROL + 1)
    except BaseException:
        traceback.print_exc()
        os._exit(child.SETUP_FAILED)
    return functools.partial(_be_sealed, seal.processors)


def _be_sealed(processors: Set[int]) -> NoReturn:
    try:
        with socket.socket(fileno=_CONTROL) as channel:
            _serve_programs(channel, processors)
    except BaseException:
        traceback.print_exc()
    os._exit(child.SETUP_FAILED)


def _serve_programs(channel: socket.socket, processors: Set[int]) -> None:
    """Fork a process for each program."""
    clone = kernel.prepared_clone(kernel.CLONE_PARENT)
    space = socket.CMSG_SPACE(_FOUR.size)
    channel.send(b"ready")
    while True:
        message, ancillary, _, _ = channel.recvmsg(_MAX_MESSAGE, space)
        if not message:
            return
        if message == _PING:
            channel.send(message)
            continue
        pid = clone()
        if pid == 0:
            if message == _TEMPLATE:
                _become_template(channel, processors, *_TWO.unpack(ancillary[0][2]))
            source_descriptor, *streams = _FOUR.unpack(ancillary[0][2])
            source = child.read_all(source_descriptor)
            _become_test(streams, processors)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
            program.run(source)
        os.closerange(_CONTROL + 1, kernel.ABOVE_ALL_DESCRIPTORS)
        if pid < 0:
            return  # the kernel refused to fork; the cell starts the test itself
        channel.send(b"%d" % pid)


def _become_test(streams: Sequence[int], processors: Set[int]) -> None:
    for target, descriptor in enumerate(streams):  # all of them are above _CONTROL
        os.dup2(descriptor, target)
    os.closerange(_CONTROL, kernel.ABOVE_ALL_DESCRIPTORS)
    os.setpgid(0, 0)  # so that signals to its group reach no other process; setsid would also make a scheduling group
    with contextlib.suppress(OSError):  # these processors may not be allowed any more
        os.sched_setaffinity(0, processors)


def _become_template(channel: socket.socket, processors: Set[int], control: int, program_descriptor: int) -> NoReturn:
    try:
        source = child.read_all(program_descriptor)
        os.dup2(control, _CONTROL)  # from now on `channel` leads to the cell
        os.closerange(_CONTROL + 1, kernel.ABOVE_ALL_DESCRIPTORS)
        code: types.CodeType | None = None
        # If compiling fails, each test compiles the program again and reports the error.
        with contextlib.suppress(Exception):
            code = program.compiled(source)
        _serve_tests(channel, processors, source, code)
    except BaseException:
        traceback.print_exc()
    os._exit(child.SETUP_FAILED)


def _serve_tests(channel: socket.socket, processors: Set[int], source: bytes, code: types.CodeType | None) -> None:
    module = program.main_module(source)
    draws = program.mentions_generators(source)
    space = socket.CMSG_SPACE(_THREE.size)
    # These names are looked up before the forks: a lookup changes reference counts, and each change copies a page.
    receive, send, unpack = channel.recvmsg, channel.send, _THREE.unpack
    duplicate, close_range, set_group, set_processors = os.dup2, os.closerange, os.setpgid, os.sched_setaffinity
    executed, leave = program.executed, os._exit
    clone, become_dumpable = kernel.prepared_clone(kernel.CLONE_PARENT), kernel.prepared_dumpable()
    send(b"ready")
    while True:
        message, ancillary, _, _ = receive(_MAX_MESSAGE, space)
        if not message:
            return
        stdin, stdout, stderr = unpack(ancillary[0][2])
        pid = clone()
        if pid == 0:
            # These are the steps of `_become_test`; a call of this function would copy more pages.
            duplicate(stdin, 0)
            duplicate(stdout, 1)
            duplicate(stderr, 2)
            close_range(_CONTROL, kernel.ABOVE_ALL_DESCRIPTORS)
            set_group(0, 0)
            try:  # noqa: SIM105 (a context manager would copy more pages)
                set_processors(0, processors)
            except OSError:
                pass
            become_dumpable()
            if draws:
                program.seed_generators()
            leave(executed(source, code, module, False))
        close_range(_CONTROL + 1, kernel.ABOVE_ALL_DESCRIPTORS)
        if pid < 0:
            return  # the kernel refused to fork; the cell starts the test itself
        send(b"%d" % pid)
