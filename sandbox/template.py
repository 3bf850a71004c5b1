"""A sealed process that holds one compiled program and forks it for each of its tests.

Sealing takes as long as a small program runs. A program with many tests is therefore sealed once, in a template that
never runs any of it; each test is a fork of the template, made as the cell's own child. A test cannot look into the
template (it is not dumpable, and the system-call list has no ptrace) nor change it; if a test kills it or leaves
anything behind, the cell throws it away and seals the next test anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import traceback
import types
from typing import Any, NoReturn

from sandbox import child, kernel, program
from sandbox.child import Seal

_CONTROL = 3  # descriptor of the template's socket
# Whatever takes longer to compile is compiled by each test, in its own time. Both waits together stay well below the
# grace that the supervisor gives a cell, so that no program can make the sandbox seem to have failed.
_READY_SECONDS = 2.0
_FORK_SECONDS = 1.0  # a template that takes longer has been stopped by one of its tests
_MAX_MESSAGE = 64
_DESCRIPTORS = struct.Struct("3i")  # standard input, output and error of a test


class TemplateLost(Exception):
    """The template did not answer."""


class Template:
    """The cell's handle on a template process.

    Raises:
        TemplateLost: it could not be sealed.
    """

    def __init__(self, seal: Seal, request: dict[str, Any], program_descriptor: int) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(min(_READY_SECONDS, request["limits"]["wall_seconds"]))
        self.pid = kernel.clone(0)
        if self.pid == 0:
            _become_template(seal, request, program_descriptor, theirs.fileno())
        theirs.close()
        try:
            ready = self._control.recv(_MAX_MESSAGE)
        except OSError:
            ready = b""
        if ready != b"ready":
            self.close()
            raise TemplateLost
        self._control.settimeout(_FORK_SECONDS)

    def fork(self, descriptors: list[int]) -> int:
        """Start a test on `descriptors` (standard input, output, error); returns its process number.

        Raises:
            TemplateLost: the template is gone or stopped.
        """
        try:
            packed = _DESCRIPTORS.pack(*descriptors)
            self._control.sendmsg([b"fork"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
            answer = self._control.recv(_MAX_MESSAGE)
        except OSError:
            raise TemplateLost from None
        if not answer:
            raise TemplateLost
        return int(answer)

    def close(self) -> None:
        """End the template process and reap it, if that has not been done; idempotent."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _become_template(seal: Seal, request: dict[str, Any], program_descriptor: int, control: int) -> NoReturn:
    try:
        os.chdir(seal.scratch)  # each test starts there; the cell ends a template whose scratch directory it replaces
        source = child.read_all(program_descriptor)
        child.place_descriptors([0, 1, 2, control])
        child.restrict(seal, request, keep=_CONTROL + 1)
        code: types.CodeType | None = None
        with contextlib.suppress(Exception):  # each test shall see for itself why it does not compile
            code = program.compiled(source)
        with socket.socket(fileno=_CONTROL) as channel:
            channel.send(b"ready")
            _serve(channel, source, code)
    except BaseException:
        traceback.print_exc()
    os._exit(child.SETUP_FAILED)


def _serve(channel: socket.socket, source: bytes, code: types.CodeType | None) -> None:
    module = program.main_module(source)
    draws = program.mentions_generators(source)
    space = socket.CMSG_SPACE(_DESCRIPTORS.size)
    # Looked up beforehand: what is found through other objects changes their reference counts, and copies their pages.
    receive, send, unpack = channel.recvmsg, channel.send, _DESCRIPTORS.unpack
    duplicate, close_range, set_group = os.dup2, os.closerange, os.setpgid
    executed, leave = program.executed, os._exit
    clone, become_dumpable = kernel.prepared_clone(kernel.CLONE_PARENT), kernel.prepared_dumpable()
    while True:
        message, ancillary, _, _ = receive(_MAX_MESSAGE, space)
        if not message:
            return
        stdin, stdout, stderr = unpack(ancillary[0][2])
        pid = clone()
        if pid == 0:
            duplicate(stdin, 0)  # all of them are above _CONTROL
            duplicate(stdout, 1)
            duplicate(stderr, 2)
            close_range(_CONTROL, kernel.ABOVE_ALL_DESCRIPTORS)
            # A group suffices to keep its signals to itself; for each new session the kernel makes a scheduling group.
            set_group(0, 0)
            become_dumpable()
            if draws:
                program.seed_generators()
            leave(executed(source, code, module, False))
        close_range(_CONTROL + 1, kernel.ABOVE_ALL_DESCRIPTORS)
        if pid < 0:
            return  # no process could be started; the cell tries without a template
        send(b"%d" % pid)
