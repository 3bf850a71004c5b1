"""The driver's handles of the nursery and of the processes of conversations. No call of them blocks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.environments.contract import WorldFailed
from grpo.environments.wire import MAX_FRAME
from rewards.pool.wire import Inbox

_CONTROL_BYTES = 1 << 13
_READ_BYTES = 1 << 18
_identities = itertools.count()


class NurseryDied(Exception):
    """The nursery is gone. The message says why, if the nursery said it."""


class NurseryHandle:
    """Starts the nursery, and talks to it.

    Make this object in a thread that lives as long as the conversations: when the thread that started the nursery ends,
    the kernel ends the nursery.

    Args:
        setup: settings for the nursery (`pack_setup`).
        log: file to which the nursery and the user's code print.
        schemas: whether the nursery makes the schemas of the tools.

    Raises:
        OSError: no process can be started, or the log cannot be written.
    """

    def __init__(self, setup: bytes, log: Path, schemas: bool) -> None:
        self.connection, nursery_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.setblocking(False)
        self.started_at = time.monotonic()
        self.ready = False
        self.tools: list[dict[str, Any]] = []
        self._log = log
        self._outgoing: deque[bytes] = deque()
        # The folder of these packages comes first: the folder of a user's script may have another `grpo/`.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
        # One thread per process, because a process with several threads cannot be forked safely, and some libraries
        # start threads at import.
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        settings = os.memfd_create("worlds")
        try:
            with os.fdopen(os.dup(settings), "wb") as file:
                file.write(setup)
            descriptors = [nursery_end.fileno(), settings]
            numbers = [*map(str, descriptors), str(os.getpid()), str(int(schemas))]
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "grpo.environments.nursery", *numbers],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=descriptors,
                    start_new_session=True,
                    env={**os.environ, **single, "PYTHONPATH": path},
                )
        except OSError:
            self.connection.close()
            raise
        finally:
            nursery_end.close()
            os.close(settings)

    def fork(self, identity: int, connection: socket.socket) -> bool:
        """Ask for a process with this connection; return False if the nursery takes no more commands now."""
        if not self.flush():
            return False
        try:
            socket.send_fds(self.connection, [f"fork {identity}".encode()], [connection.fileno()])
        except BlockingIOError:
            return False
        except OSError:
            return True  # The nursery is gone, which the next read shows.
        return True

    def kill(self, identity: int) -> None:
        """Kill a process and its children; the nursery ignores processes that have ended."""
        self._outgoing.append(f"kill {identity}".encode())
        self.flush()

    def flush(self) -> bool:
        """Send as many commands as the nursery takes now; return True if none remains."""
        while self._outgoing:
            try:
                self.connection.send(self._outgoing[0])
            except BlockingIOError:
                return False
            except OSError:
                self._outgoing.clear()  # The nursery is gone, which the next read shows.
                return True
            self._outgoing.popleft()
        return True

    def message(self) -> list[str] | None:
        """Return the next message in three words: what happened, the identity, and more. None if no message is there.

        Raises:
            NurseryDied: the nursery is gone, or its code could not be loaded.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, _CONTROL_BYTES, 1)
        except BlockingIOError:
            return None
        except OSError:
            data, descriptors = b"", []
        text = data.decode("utf-8", "replace")
        if not text:
            raise NurseryDied(f"the process that forks the conversations' processes died; it printed to {self._log}")
        if text.startswith("failed "):
            raise NurseryDied(text.removeprefix("failed "))
        if text == "ready":
            self._read_schemas(descriptors[0])
            self.ready = True
        return [*text.split(" ", 2), "", ""][:3]

    def _read_schemas(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            text = file.read()
        try:
            reply = json.loads(text or b"{}")
        except (ValueError, RecursionError) as problem:
            raise NurseryDied(f"the schemas of the tools are not JSON: {problem}") from problem
        if "failed" in reply:
            raise NurseryDied(reply["failed"])
        self.tools = reply.get("tools", [])

    def leave(self) -> subprocess.Popen[bytes]:
        """Close the connection, so that the nursery kills all its processes and ends; return it, to be waited for."""
        self.connection.close()
        return self._process


def pack_setup(spec: Any, factory: str | None, sessions: str | None, memory_mib: int | None) -> bytes:
    """Pickle the settings for the nursery.

    Raises:
        ValueError: the spec cannot be pickled.
    """
    settings: Mapping[str, Any] = {
        "spec": spec,
        "factory": factory,
        "sessions": sessions,
        "memory_bytes": None if memory_mib is None else memory_mib << 20,
        "path": [str(Path(__file__).resolve().parents[2]), *sys.path],
    }
    try:
        return pickle.dumps(settings)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"the options of the environments cannot be sent to a process ({problem}); give plain data"
        ) from problem


@dataclass(slots=True, eq=False)
class WorldHandle:
    """The process of a conversation.

    Attributes:
        key: the conversation.
        connection: socket to the process, not blocking.
        process_end: the process's end of the connection; None after the nursery got it.
        identity: number of the process for the nursery, never used again.
        inbox: splits the bytes from the process into replies.
        outgoing: bytes that were not yet written.
        request: request that the process has not answered, `open`, `answer` or `close`; empty if there is none.
        requested_at: time of the request, in seconds of the monotonic clock.
        due: deadline of the request; infinite while there is none.
        lost: whether the process has closed its connection.
        failure: why the world failed between two requests; the next request gets it.
    """

    key: int
    connection: socket.socket
    process_end: socket.socket | None
    identity: int = field(default_factory=_identities.__next__)
    inbox: Inbox = field(default_factory=lambda: Inbox(MAX_FRAME))
    outgoing: bytearray = field(default_factory=bytearray)
    request: str = ""
    requested_at: float = 0.0
    due: float = float("inf")
    lost: bool = False
    failure: WorldFailed | None = None

    def ask(self, request: str, frame: bytes) -> None:
        """Begin a request; `flush` sends it."""
        assert not self.request, f"conversation {self.key} was asked for {request} during {self.request}"
        self.request, self.requested_at = request, time.monotonic()
        self.outgoing += frame

    def flush(self) -> bool:
        """Send as much as the process takes now; return True if nothing remains."""
        while self.outgoing and not self.lost:
            try:
                count = self.connection.send(self.outgoing)
            except BlockingIOError:
                return False
            except OSError:
                break  # The process is gone, which the next read shows.
            del self.outgoing[:count]
        self.outgoing.clear()
        return True

    def receive(self) -> bytes | None:
        """Read from the process. Return None if nothing has arrived, and empty bytes if the process is gone."""
        try:
            return self.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close(self) -> None:
        """Close both ends of the connection."""
        for end in (self.connection, self.process_end):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()


def make_handle(key: int) -> WorldHandle:
    """Return a handle for a process that does not exist yet.

    Raises:
        OSError: the driver has no file descriptor for the connection.
    """
    driver_end, process_end = socket.socketpair()
    driver_end.setblocking(False)
    return WorldHandle(key, driver_end, process_end)
