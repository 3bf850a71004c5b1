"""The zygote's work: it clones a cell for each request of a supervisor."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox.inside import cell, session_cell
from sandbox.inside.child import Become
from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal
from sandbox.types import ProgramStatus


def serve(control: socket.socket, seal: Seal) -> NoReturn:
    """Clone a cell for every request until the supervisor closes the channel."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    cells: dict[int, int] = {}  # key: descriptor of the process; value: its process number
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in cells:
                os.waitpid(cells.pop(descriptor), 0)
                poll.unregister(descriptor)
                os.close(descriptor)
                continue
            request, descriptors = cell.receive(control)
            if request is None:
                os._exit(0)
            with socket.socket(fileno=descriptors[0]) as channel:
                handle = _start(seal, channel, request, descriptors[1:], [control.fileno(), *cells])
            for further in descriptors[1:]:
                os.close(further)
            if handle is not None:
                cells[handle[1]] = handle[0]
                poll.register(handle[1], select.POLLIN)


def _start(
    seal: Seal, channel: socket.socket, request: dict[str, Any], further: list[int], others: list[int]
) -> tuple[int, int] | None:
    """Clone a cell that serves `channel`; return its process number and a descriptor of its process.

    Return None if the kernel has no process or descriptor left for this cell. The other cells live on.

    Args:
        seal: the worker's layers.
        channel: the cell's socket to the supervisor.
        request: `disk_bytes` and `files` of the scratch directory; for a session also the key `session`.
        further: descriptors that only a session has.
        others: descriptors of the zygote that the cell must close.
    """
    flags = 0
    if seal.process_namespace:
        flags |= kernel.CLONE_NEWPID
    if seal.private_root:
        flags |= kernel.CLONE_NEWNS
    serve_channel: Callable[[Seal, socket.socket, dict[str, Any]], NoReturn] = cell.serve
    if "session" in request:
        flags |= session_cell.more_namespaces(request)
        serve_channel = functools.partial(session_cell.serve, descriptors=further)
    try:
        pid = kernel.clone(flags)
        if pid != 0:
            return pid, os.pidfd_open(pid)
    except OSError as problem:
        _complain(channel, f"no cell could be started: {problem}")
        return None
    work: Callable[[], Callable[[], NoReturn]] | None = None
    try:
        for descriptor in others:
            os.close(descriptor)
        serve_channel(seal, channel, request)
    except Become as order:
        work = order.work
    except OSError as problem:
        _complain(channel, f"the cell could not be set up: {problem}")
    finally:
        if work is None:
            os._exit(1)
    # On the call stack of a program, this is the only frame of the cell.
    run = work()
    del work
    run()


def _complain(channel: socket.socket, reason: str) -> None:
    with contextlib.suppress(OSError):
        channel.send(json.dumps([{"status": ProgramStatus.SANDBOX_ERROR.value, "reason": reason}]).encode())
