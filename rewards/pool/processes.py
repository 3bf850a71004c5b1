"""The parent's handles of the pool's processes: of the nursery, and of the workers that the nursery forks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rewards.pool.wire import LENGTH, Inbox
from rewards.stage import PAGE_BYTES, SharedPage

_CONTROL_BYTES = 1 << 16
# The low bits of the identity of a process's clock. The other bits are the inverted process id; see
# clock_getcpuclockid(3).
_PROCESS_CLOCK = 2
# Most bytes that are read at once of what verifiers print. A longer line becomes several records of the log.
_PRINTED_BYTES = 1 << 14

logger = logging.getLogger(__name__)


class NurseryError(Exception):
    """The nursery did not start, died, or did not answer."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """Names of the verifiers that get several completions in a call, or several calls at once.

    Attributes:
        groups: names of the verifiers that judge all completions of a prompt at once.
        asynchronous: names of the verifiers whose calls overlap in one worker.
    """

    groups: frozenset[str] = frozenset()
    asynchronous: frozenset[str] = frozenset()


class WorkerNursery:
    """The parent's handle of the nursery process.

    Make this object in a thread that lives as long as the pool: when the thread that started the nursery ends, the
    kernel kills the nursery.

    Raises:
        NurseryError: the nursery did not start within `start_s` seconds. If a verifier raised an error, the message
            contains the error.
    """

    def __init__(self, setup: bytes, start_s: float) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        ours.settimeout(start_s)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
        # One thread per process, because a process with several threads cannot be forked safely, and some libraries
        # start threads at import.
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        printed, output = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.pool.nursery", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, **single, "PYTHONPATH": path},
            )
        finally:
            theirs.close()
            os.close(output)
            _log_printed(printed)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(setup)
            self._process.stdin.close()
            answer = ours.recv(_CONTROL_BYTES).decode("utf-8", "replace")
        except (OSError, TimeoutError) as problem:
            self.stop()
            raise NurseryError(f"the verifiers were not loaded within {start_s:g} s: {problem!r}") from problem
        if not answer.startswith("ready "):
            self.stop()
            raise NurseryError(answer.removeprefix("failed ") or "the process that loads the verifiers died")
        kinds = json.loads(answer.removeprefix("ready "))
        self.kinds = Kinds(frozenset(kinds["groups"]), frozenset(kinds["asynchronous"]))

    def fork(self, asynchronous: bool = False) -> WorkerProcess:
        """Fork a worker. The worker sends `ready` on its connection when it can take calls.

        Args:
            asynchronous: whether the worker runs async verifiers, whose calls overlap.

        Raises:
            NurseryError: the nursery died or did not answer.
        """
        ours, theirs = socket.socketpair()
        page = os.memfd_create("verifier-page")
        try:
            os.ftruncate(page, PAGE_BYTES)
            command = b"fork async" if asynchronous else b"fork"
            socket.send_fds(self._control, [command], [theirs.fileno(), page])
            answer = self._control.recv(_CONTROL_BYTES)
            if not answer:
                raise NurseryError("the process that workers are forked from died")
            ours.setblocking(False)
            return WorkerProcess(int(answer), ours, SharedPage(page))
        except OSError as problem:
            ours.close()
            raise NurseryError(f"no worker could be forked: {problem!r}") from problem
        finally:
            theirs.close()
            os.close(page)

    def end(self, worker: WorkerProcess) -> None:
        """Kill a worker and its process group, and reap the worker. Its id stays reserved until it is reaped."""
        worker.connection.close()
        worker.page.close()
        if self._process.poll() is not None:
            # The nursery is dead. So the kernel has killed its workers; other processes may have their ids now.
            return
        worker.set_idle(False)  # an idle process may get no processor time, which it needs to die
        for kill in (os.kill, os.killpg):
            # The worker may be dead already, or may not have made its group yet.
            with contextlib.suppress(ProcessLookupError):
                kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # the next fork notices that the nursery is gone
            self._control.send(str(worker.pid).encode())

    def stop(self) -> None:
        """Kill the nursery; every worker dies with it."""
        self._control.close()
        self._process.kill()
        self._process.wait()


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """The parent's handle of one worker.

    Attributes:
        pid: process id.
        connection: socket to the worker, not blocking.
        page: memory shared with the worker.
        inbox: splits the bytes that the worker sent into replies.
        outgoing: bytes that were not yet written to the socket.
        started_at: time of the fork, in seconds of the monotonic clock.
    """

    pid: int
    connection: socket.socket
    page: SharedPage
    inbox: Inbox = field(default_factory=Inbox)
    outgoing: bytearray = field(default_factory=bytearray)
    started_at: float = field(default_factory=time.monotonic)

    def send(self, body: bytes) -> None:
        """Add a message to the bytes to be sent; `flush` sends them."""
        self.outgoing += LENGTH.pack(len(body)) + body

    def flush(self) -> bool:
        """Send as much as the socket accepts now; return True if nothing remains to be sent.

        Raises:
            OSError: the worker is gone.
        """
        while self.outgoing:
            try:
                count = self.connection.send(self.outgoing)
            except BlockingIOError:
                return False
            del self.outgoing[:count]
        return True

    def receive(self) -> bytes | None:
        """Read from the worker. Return None if nothing has arrived, and empty bytes if the worker is gone."""
        try:
            return self.connection.recv(1 << 18)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def set_idle(self, idle: bool) -> bool:
        """If `idle`, let the worker run only on otherwise idle processors. If not, let it run as usual.

        Return False on failure: restoring the usual policy needs a privilege (see sched_setscheduler(2)).
        """
        try:
            os.sched_setscheduler(self.pid, os.SCHED_IDLE if idle else os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            return False  # the worker is gone, or the system does not allow it
        return True

    def processor_ns(self) -> int | None:
        """Processor time that the worker has used, in nanoseconds; None if the worker has died."""
        try:
            return time.clock_gettime_ns(~self.pid << 3 | _PROCESS_CLOCK)
        except OSError:
            return None

    def asleep(self) -> bool:
        """Whether the worker is asleep, so that it needs no processor at this moment."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] in (b"S", b"D", b"T")
        except OSError:
            return False  # the worker has died


def flush(selector: selectors.BaseSelector, worker: WorkerProcess, data: object) -> None:
    """Send as much as the worker's socket accepts; if bytes remain, let the selector report when it accepts more.

    Args:
        selector: selector in which the worker's socket is registered.
        worker: process to which the bytes are sent.
        data: object that the selector returns for this socket.
    """
    try:
        events = selectors.EVENT_READ if worker.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
    except OSError:
        return  # the worker died; the next read finds the end of its stream
    if selector.get_key(worker.connection).events != events:
        selector.modify(worker.connection, events, data)


def import_hint(page: SharedPage) -> str:
    """Text to add to the reason of a timeout if the call was importing a module; empty if it was not."""
    module = page.importing()
    if not module:
        return ""
    return f"; it was importing {module!r}: at the top of the verifier's file an import runs once, before workers start"


def _log_printed(descriptor: int) -> None:
    """Log the lines that arrive at a pipe, in a thread that ends with the pipe.

    Args:
        descriptor: standard output of the nursery and of its workers. They would wait if nobody read it.
    """

    def run() -> None:
        rest = b""
        while chunk := os.read(descriptor, _PRINTED_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) >= _PRINTED_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                logger.info("a verifier printed: %s", line.decode("utf-8", "replace"))
        if rest:
            logger.info("a verifier printed: %s", rest.decode("utf-8", "replace"))
        os.close(descriptor)

    # The thread reads the descriptor itself, because a file object has a lock, which the interpreter needs at its end.
    threading.Thread(target=run, name="verifier-prints", daemon=True).start()
