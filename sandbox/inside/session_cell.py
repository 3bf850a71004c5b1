"""The cell of a session: a process that answers one call after the other, and keeps its state between them.

The cell has the namespaces and layers of a cell for programs. It starts the session's process (`notebook.py`, or a
shell), tells it to run the code of a call, and watches it. After a call the process stands still, and the cell kills
all others. If a call passes a limit, the cell kills all processes, and the next call starts a new process. Files stay.

Sessions of different conversations share a worker, so a session has a user namespace and a control group of its own:
the kernel then counts processes, signals and memory for each session.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import stat
import time
from typing import Any, NoReturn

from sandbox.group_meter import GroupFiles, GroupMeter
from sandbox.inside import child
from sandbox.inside.cell import Cell, receive
from sandbox.inside.child import Become
from sandbox.inside.isolation import kernel, layers
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.session_watch import Ends, Output, SessionWatch, read_now, reap_orphans
from sandbox.types import ProgramStatus

_LIVES = (ProgramStatus.OK, ProgramStatus.EXCEPTION)
_NUMBER_BYTES = 8


def more_namespaces(request: dict[str, Any]) -> int:
    """The namespaces of a session's cell in addition to those of every cell."""
    return kernel.CLONE_NEWUSER if request["own_user_namespace"] else 0


def serve(seal: Seal, channel: socket.socket, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Run calls until the channel closes or the owner ends. Never returns.

    Args:
        seal: the worker's layers.
        channel: socket to the supervisor.
        request: `session`: fields for `child.become_program`; `limits`; `kept_bytes`: bytes of output that are kept for
            each call; `join`: number of control groups to enter; `own_user_namespace`: whether other sessions share the
            worker.
        descriptors: the owner's process, the file with a call's code, the file for a call's output, and the files of
            the control group, if there is one.

    Raises:
        Become: raised in each process that the cell forks.
        OSError: a namespace, a mount or a control group is refused.
    """
    owner, code, output, *group = descriptors
    if more_namespaces(request):
        layers.map_user(layers.INNER_ID, layers.INNER_ID, seal.proc)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # the session's processes cannot open the cell's memory and descriptors
    seal = seal.with_meter(_enter_group(request["join"], group) if group else seal.meter)
    cell = SessionCell(seal, request, channel.fileno(), owner, code)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(owner, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        message = receive(channel)[0] if channel.fileno() in ready else None
        if message is None or owner in ready:
            cell.end()
            os._exit(0)
        try:
            kept, reply = cell.call(message["wall_s"])
            os.pwrite(output, kept, 0)
        except OSError as problem:
            reply = {"status": ProgramStatus.SANDBOX_ERROR.value, "reason": f"the session's cell failed: {problem}"}
        channel.send(json.dumps([reply]).encode())


def _enter_group(join: int, files: list[int]) -> GroupMeter:
    for descriptor in files[:join]:
        os.write(descriptor, b"0")
        os.close(descriptor)
    usage, limit, events, *cpu = files[join:]
    return GroupMeter(GroupFiles((), usage, limit, events, cpu[0] if cpu else None))


class SessionCell(Cell):
    """The namespaces of one session, and its calls.

    Raises:
        OSError: a mount is refused.
    """

    def __init__(self, seal: Seal, request: dict[str, Any], channel: int, owner: int, code: int) -> None:
        super().__init__(seal, request["limits"], channel)
        self._request = request["session"] | {"session": True, "limits": request["limits"]}
        self._kept_bytes, self._owner = request["kept_bytes"], owner
        # The session's processes may read the file, but not write to it. This descriptor and theirs share a position.
        self._code = os.open(f"self/fd/{code}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=seal.proc)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._mode = stat.S_IMODE(os.stat(seal.scratch).st_mode)
        self._ends: Ends | None = None
        self._watch: SessionWatch | None = None

    def call(self, wall_s: float) -> tuple[bytes, dict[str, Any]]:
        """Run the code in the file for at most `wall_s` seconds. Return the kept output, and how the call ended.

        The reply has `head`: bytes of the output's beginning; `left_out`: bytes that were dropped behind it.
        """
        if self._ends is None:
            self._begin_process()
        ends, watch = self._ends, self._watch
        assert ends is not None and watch is not None
        os.lseek(self._code, 0, os.SEEK_SET)
        output = Output(self._kept_bytes)
        started = time.monotonic()
        watch.resume(ends.pid)
        status, exit_code = watch.until_answer(ends, os.urandom(_NUMBER_BYTES).hex().encode(), output, wall_s)
        wall = time.monotonic() - started
        if status in _LIVES and not watch.settle(ends.pid):
            status = ProgramStatus.PROCESSES
        if status not in _LIVES:
            self._kill_descendants()
        while chunk := read_now(ends.output):  # the pipe holds at most 64 KiB, and nobody writes any more
            output.add(chunk)
        if status in _LIVES:
            reap_orphans(ends.pid)
        else:
            self.end()
        kept = bytes(output.head) + output.tail
        reply = {
            "status": status.value,
            "exit_code": exit_code,
            "wall_s": wall,
            "head": len(output.head),
            "kept": len(kept),
            "left_out": output.total - len(kept),
        }
        return kept, reply

    def _begin_process(self) -> None:
        limits = self._request["limits"]
        self._open_scratch()
        if self._seal.meter is not None:
            self._seal.meter.begin(limits, 0)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        failed, failure = os.pipe2(os.O_CLOEXEC)
        pid = kernel.clone(0)
        if pid == 0:
            descriptors = [self._code, self._null, writing, writing, self._code, theirs.detach()]
            raise Become(functools.partial(child.become_program, self._seal, self._request, descriptors, failure))
        theirs.close()
        os.close(writing)
        os.close(failure)
        self._ends = Ends(pid, ours, reading)
        self._watch = SessionWatch(self._own_pid, self._seal, limits, self._channel, self._owner, self._last_pid)
        with open(failed, "rb") as pipe:
            # When the process is sealed, the pipe closes. Tests can leave out the layer that closes it.
            problem = pipe.read() if self._seal.close_descriptors else b""
        if problem:
            self.end()
            raise OSError(problem.decode("utf-8", "replace"))

    def _open_scratch(self) -> None:
        """Let the next process enter the scratch directory, which the last process may have closed or removed."""
        scratch = self._seal.scratch
        if os.path.islink(scratch):
            raise OSError("the scratch directory was replaced")
        os.makedirs(scratch, exist_ok=True)
        os.chmod(scratch, self._mode)

    def end(self) -> None:
        """Kill all processes of the session."""
        self._kill_descendants()
        if self._ends is not None:
            self._ends.close()
        self._ends = self._watch = None
