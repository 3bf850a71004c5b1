"""Sealed processes that hold no program's doing, and fork what runs one.

Sealing takes longer than a small program runs, so it is done once for many processes, which inherit it:

- The *sealed process* of a cell has given up every privilege and has never seen a program. It forks a process for each
  program: one that runs its only test, or a template.
- A *template* holds one compiled program, never runs any of it, and forks a process for each of its tests.

Whatever they fork is made as the cell's own child. A test cannot look into them (they are not dumpable, and the
system-call list has no ptrace) nor change them; if a test kills or stops one or leaves anything behind, the cell throws
all of them away.
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
# Whatever takes longer to compile is compiled by each test, in its own time. Both waits together stay well below the
# grace that the supervisor gives a cell, so that no program can make the sandbox seem to have failed.
_READY_SECONDS = 2.0
_FORK_SECONDS = 1.0  # a process that takes longer has been stopped by a test
_MAX_MESSAGE = 64
_TEMPLATE, _TEST, _PING = b"template", b"test", b"ping"
# Of a template: its socket and the program. Of a test: standard input, output and error; where no template holds the
# program, that comes first.
_TWO, _THREE, _FOUR = (struct.Struct(f"{count}i") for count in (2, 3, 4))


class TemplateLost(Exception):
    """A sealed process did not answer."""


class _Forker:
    """The cell's handle on a process that forks at its word."""

    def __init__(self, control: socket.socket, pid: int, ready_seconds: float = _READY_SECONDS) -> None:
        self._control, self.pid = control, pid
        self._control.settimeout(min(_READY_SECONDS, ready_seconds))
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
        """End the process and reap it, if that has not been done; idempotent."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class SealedProcess(_Forker):
    """The cell's handle on its sealed process.

    Args:
        seal: the worker's layers.
        request: with the limits that hold for all that it will fork.

    Raises:
        TemplateLost: it could not be sealed.
    """

    def __init__(self, seal: Seal, request: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = kernel.clone(0)
        if pid == 0:
            raise child.Become(functools.partial(_become_sealed, seal, request, theirs.detach()))
        theirs.close()
        super().__init__(ours, pid)

    def fork_test(self, program_descriptor: int, streams: Sequence[int]) -> int:
        """Start a program's test on `streams` (standard input, output, error); returns its process number.

        Raises:
            TemplateLost: the sealed process is gone or stopped.
        """
        return self._fork(_TEST, _FOUR.pack(program_descriptor, *streams))

    def answers(self) -> bool:
        """Whether it is alive, unstopped, and no signal that would change this is on its way to it.

        A signal takes effect a moment after it is sent, but before its receiver answers to anything.
        """
        try:
            self._control.send(_PING)
            return self._control.recv(_MAX_MESSAGE) == _PING
        except OSError:
            return False

    def fork_template(self, program_descriptor: int, ready_seconds: float) -> Template:
        """Start a template of a program.

        Raises:
            TemplateLost: the sealed process is gone or stopped, or the program takes too long to compile.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = self._fork(_TEMPLATE, _TWO.pack(theirs.fileno(), program_descriptor))
        return Template(ours, pid, ready_seconds)


class Template(_Forker):
    """The cell's handle on a template."""

    def fork_test(self, streams: Sequence[int]) -> int:
        """Start a test on `streams` (standard input, output, error); returns its process number.

        Raises:
            TemplateLost: the template is gone or stopped.
        """
        return self._fork(_TEST, _THREE.pack(*streams))


def _become_sealed(seal: Seal, request: dict[str, Any], control: int) -> Callable[[], NoReturn]:
    try:
        os.chdir(seal.scratch)  # each test starts there; the cell ends these processes where it replaces that directory
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
            return  # no process could be started; the cell tries without
        channel.send(b"%d" % pid)


def _become_test(streams: Sequence[int], processors: Set[int]) -> None:
    for target, descriptor in enumerate(streams):  # all of them are above _CONTROL
        os.dup2(descriptor, target)
    os.closerange(_CONTROL, kernel.ABOVE_ALL_DESCRIPTORS)
    os.setpgid(0, 0)  # suffices to keep its signals to itself; for a new session the kernel makes a scheduling group
    with contextlib.suppress(OSError):  # the machine's owner allows other processors now, and has moved it there
        os.sched_setaffinity(0, processors)


def _become_template(channel: socket.socket, processors: Set[int], control: int, program_descriptor: int) -> NoReturn:
    try:
        source = child.read_all(program_descriptor)
        os.dup2(control, _CONTROL)  # `channel` is from now on that to the cell
        os.closerange(_CONTROL + 1, kernel.ABOVE_ALL_DESCRIPTORS)
        code: types.CodeType | None = None
        with contextlib.suppress(Exception):  # each test shall see for itself why it does not compile
            code = program.compiled(source)
        _serve_tests(channel, processors, source, code)
    except BaseException:
        traceback.print_exc()
    os._exit(child.SETUP_FAILED)


def _serve_tests(channel: socket.socket, processors: Set[int], source: bytes, code: types.CodeType | None) -> None:
    module = program.main_module(source)
    draws = program.mentions_generators(source)
    space = socket.CMSG_SPACE(_THREE.size)
    # Looked up beforehand: what is found through other objects changes their reference counts, and copies their pages.
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
            # As in `_become_test`, which would copy more pages.
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
            return  # no process could be started; the cell tries without a template
        send(b"%d" % pid)
