"""What opens sessions: a warm worker that processes of many conversations share."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.outside.cell_handle import WorkerLost, limits_message
from sandbox.outside.control_group import ControlGroup, sweep_groups
from sandbox.outside.worker import Worker, make_group
from sandbox.types import Isolation, IsolationError, IsolationLevel, Layer, Limits, SandboxError
from sandbox.worker_settings import WorkerSettings

_CLOSING_SECONDS = 5.0  # time for a cell to kill its processes


@dataclass(slots=True)
class OpenCell:
    """The supervisor's end of a session's cell.

    Attributes:
        channel: connection to the cell.
        code, output: descriptors of the files with a call's code and with a call's output.
        group: the session's control group, if it has one.
        worker: the worker that serves this session alone, if it is alone.
    """

    channel: socket.socket
    code: int
    output: int
    group: ControlGroup | None = None
    worker: Worker | None = None

    def close(self) -> None:
        """End the session's processes, and wait until they have ended."""
        try:
            self.channel.shutdown(socket.SHUT_WR)
            self.channel.settimeout(_CLOSING_SECONDS)
            while self.channel.recv(1 << 16):
                pass
        except OSError:
            pass  # the cell is gone, or does not end; the kernel ends it with its worker
        self.channel.close()
        for descriptor in (self.code, self.output):
            os.close(descriptor)
        if self.worker is not None:
            self.worker.stop()
        if self.group is not None:
            self.group.remove()


class SessionHost:
    """Opens the cells of sessions, for the process that made it and for forks of this process, hundreds at once.

    With namespaces, all sessions share a warm worker: each has its own namespaces, files and control group. Without
    namespaces, files and users belong to a worker, so each session starts a worker of its own.

    Args:
        level: the weakest isolation at which programs may run.
        preload: modules that stay imported for Python sessions. They see no other third-party modules.
        without: layers to leave out. For tests only.

    Raises:
        IsolationError: this machine cannot give `level`; the message says what is missing and how to get it.
        SandboxError: the worker could not be started.
    """

    def __init__(
        self,
        level: IsolationLevel = IsolationLevel.CONFINED,
        preload: Sequence[str] = ("numpy",),
        without: frozenset[Layer] = frozenset(),
    ) -> None:
        self._level, self._preload, self._without = level, tuple(sorted(preload)), without
        self._closed = False
        self._worker = self._start_worker()
        self.isolation: Isolation = self._worker.isolation
        self._shares = self._worker.allows_executables

    def __enter__(self) -> SessionHost:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def allows_executables(self) -> bool:
        """Whether sessions may start other programs. A shell needs this."""
        return self._worker.allows_executables

    def close(self) -> None:
        """End the worker and all sessions in it. Can be called twice. In a fork it only ends the fork's connection."""
        self._closed = True
        self._worker.stop()
        sweep_groups()  # those of forks that were killed

    def open_cell(self, session: dict[str, Any], limits: Limits, kept_bytes: int) -> OpenCell:
        """Start the cell of a session. The cell ends with this process.

        Args:
            session: `kind` and further fields of `child.become_program`.
            limits: limits of each call; those of memory, processes and files hold for the whole session.
            kept_bytes: bytes of output that are kept for each call.

        Raises:
            SandboxError: the host is closed, or the worker is gone.
        """
        if self._closed:
            raise SandboxError("the host of these sessions is closed")
        with contextlib.ExitStack() as failing:
            worker = self._worker
            if not self._shares:
                worker = self._start_worker()
                failing.callback(worker.stop)
            group = self._make_group(limits) if self._shares else None
            files: tuple[int, ...] = ()
            join = 0
            if group is not None:
                failing.callback(group.remove)
                assert group.files is not None, "a new group has its descriptors"
                files, join = group.files.all, len(group.files.join)
            code = os.memfd_create("code", os.MFD_CLOEXEC)
            failing.callback(os.close, code)
            # The session's processes may be of another user, who may read the code but not write to it.
            os.fchmod(code, 0o644)
            output = os.memfd_create("output", os.MFD_CLOEXEC)
            failing.callback(os.close, output)
            request = {
                "session": session,
                "limits": limits_message(limits),
                "kept_bytes": kept_bytes,
                "join": join,
                "own_user_namespace": self._shares,
            }
            owner = os.pidfd_open(os.getpid())
            try:
                channel = worker.clone_cell(request, [owner, code, output, *files])
            except WorkerLost as problem:
                raise SandboxError(f"no session could be opened: {problem}") from problem
            finally:
                os.close(owner)
            failing.pop_all()
        if group is not None:
            group.close_descriptors()
        return OpenCell(channel, code, output, group, None if self._shares else worker)

    def _make_group(self, limits: Limits) -> ControlGroup | None:
        """Make the control group of a session if the machine has control groups."""
        if Layer.CGROUP not in self.isolation.active:
            return None
        group = make_group()
        if isinstance(group, str):
            raise SandboxError(f"a session needs a control group: {group}")
        group.allow(limits)
        return group

    def _start_worker(self) -> Worker:
        settings = WorkerSettings(
            supervisor=os.getpid(),
            preload=self._preload,
            search_path=tuple(path for path in sys.path if path and os.path.isdir(path)),
            without=self._without,
        )
        worker = Worker(settings)
        if worker.isolation.level < self._level:
            worker.stop()
            raise IsolationError(worker.isolation.refusal(self._level))
        return worker
