"""The pool's processes as their parent sees them: the nursery, and the workers it forks."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from rewards.pool.jobs import PoolJob
from rewards.pool.wire import LENGTH, Inbox
from rewards.stage import PAGE_BYTES, SharedPage
from rewards.verdict import Verdict

_CONTROL_BYTES = 1 << 16
# The first look at a call, and the least time between two.
LOOK_S = 0.004
# The low bits of the identity of a process's clock, beside its inverted id; see clock_getcpuclockid(3).
_PROCESS_CLOCK = 2


class NurseryError(Exception):
    """The nursery did not start, died, or did not answer."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which verifiers are called in another way than one completion after the other.

    Attributes:
        groups: names of those that judge all completions of a prompt at once.
        asynchronous: names of those of which several calls can be under way in one worker.
    """

    groups: frozenset[str] = frozenset()
    asynchronous: frozenset[str] = frozenset()


class WorkerNursery:
    """The parent's hold on the nursery process.

    Start it in the thread that lives as long as the pool: the kernel counts that thread as the parent whose death
    kills it.

    Raises:
        NurseryError: it did not come up within `start_s` seconds; the message has the verifier's own error.
    """

    def __init__(self, setup: bytes, start_s: float) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        ours.settimeout(start_s)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
        # One thread per process: libraries that start a pool of threads at import would spoil the forking.
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.pool.nursery", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, **single, "PYTHONPATH": path},
            )
        finally:
            theirs.close()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(setup)
            self._process.stdin.close()
            said = ours.recv(_CONTROL_BYTES).decode("utf-8", "replace")
        except (OSError, TimeoutError) as problem:
            self.stop()
            raise NurseryError(f"the verifiers were not loaded within {start_s:g} s: {problem!r}") from problem
        if not said.startswith("ready "):
            self.stop()
            raise NurseryError(said.removeprefix("failed ") or "the process that loads the verifiers died")
        kinds = json.loads(said.removeprefix("ready "))
        self.kinds = Kinds(frozenset(kinds["groups"]), frozenset(kinds["asynchronous"]))

    def fork(self, asynchronous: bool = False) -> WorkerHandle:
        """A new worker; it says `ready` on its connection when it can take work.

        Args:
            asynchronous: it has many calls under way at a time.

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
            return WorkerHandle(int(answer), ours, SharedPage(page))
        except OSError as problem:
            ours.close()
            raise NurseryError(f"no worker could be forked: {problem!r}") from problem
        finally:
            theirs.close()
            os.close(page)

    def end(self, worker: WorkerHandle) -> None:
        """Kill a worker with all of its group, and reap it. Its id cannot have been reused: only this reaps it."""
        worker.connection.close()
        worker.page.close()
        if worker.idle:
            worker.set_idle(False)  # dying takes processor time as well
        if self._process.poll() is not None:
            return  # the kernel has killed its children with it, and their ids may be others' by now
        for kill in (os.kill, os.killpg):
            # It may be dead already, or not have had a group of its own yet.
            with contextlib.suppress(ProcessLookupError):
                kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # a nursery that is going is noticed at the next fork
            self._control.send(str(worker.pid).encode())

    def stop(self) -> None:
        """Kill the nursery, and with it every worker that is left."""
        self._control.close()
        self._process.kill()
        self._process.wait()


@dataclass(slots=True)
class Sent:
    """A job that was sent to a worker, and the verdicts that came of it so far.

    A ghost was taken back: should it run all the same, nobody listens.
    """

    batch: int
    job: PoolJob
    ghost: bool = False
    got: list[Verdict] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker as its parent sees it: what it was sent and has not answered, the first entry being what it runs."""

    pid: int
    connection: socket.socket
    page: SharedPage
    inbox: Inbox = field(default_factory=Inbox)
    sent: deque[Sent] = field(default_factory=deque)
    outgoing: bytearray = field(default_factory=bytearray)
    ready: bool = False
    begun_at: float = field(default_factory=time.monotonic)
    last_batch: int = 0
    taken_back: bool = False
    stalled: bool = False
    waits: bool = False
    unusual: bool = False
    idle: bool = False
    extended: bool = False
    look_at: float = 0.0
    last_used: int = -1

    def give(self, jobs: list[PoolJob]) -> None:
        """Queue a batch for sending."""
        self.last_batch += 1
        if not self.sent:
            self._next_call_begins()
        self.sent.extend(Sent(self.last_batch, job) for job in jobs)
        self.send((self.last_batch, [job.message() for job in jobs]))

    def send(self, message: object) -> None:
        """Put a message into the queue for sending."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self.outgoing += LENGTH.pack(len(body)) + body

    def batches_in_flight(self) -> int:
        """How many batches are not answered in full."""
        return self.sent[-1].batch - self.sent[0].batch + 1 if self.sent else 0

    def take_back(self) -> list[PoolJob]:
        """Revoke all but the first job, which is running or about to; they are returned, to be given to another."""
        self.page.revoke(self.last_batch, self.sent[0].job.identity)
        self.taken_back = True
        jobs = []
        for entry in list(self.sent)[1:]:
            if not entry.ghost:
                entry.ghost = True
                jobs.append(entry.job)
        return jobs

    def flush(self) -> bool:
        """Send what fits; True where nothing is left to send.

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
        """What it says; None where there is nothing yet, empty where it is gone."""
        try:
            return self.connection.recv(1 << 18)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def set_idle(self, idle: bool) -> None:
        """Let the worker run only where nobody else wants the processor, or as usual again.

        The way back takes a privilege (see sched_setscheduler(2)); without it, `idle` stays true.
        """
        policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
        with contextlib.suppress(OSError):  # gone already, or not allowed
            os.sched_setscheduler(self.pid, policy, os.sched_param(0))
            self.idle = idle

    def look(self) -> tuple[bool, float] | None:
        """Whether it only waits, and the processor seconds of the call that it runs.

        Waiting is: asleep, and no processor time used since the last look. None where it is not at the call that it
        is thought to be at: its answer is under way, or it has not begun.
        """
        identity, clock_then = self.page.begun()
        if identity != self.sent[0].job.identity:
            return None
        used = self.processor_ns()
        if used is None:
            return None
        waits, self.last_used = used == self.last_used and self.asleep(), used
        return waits, max(0, used - clock_then) * 1e-9

    def processor_ns(self) -> int | None:
        """Processor time that it has used, in nanoseconds; None where it has died."""
        try:
            return time.clock_gettime_ns(~self.pid << 3 | _PROCESS_CLOCK)
        except OSError:
            return None

    def asleep(self) -> bool:
        """Whether it does not want a processor at this moment."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] in (b"S", b"D", b"T")
        except OSError:
            return False  # it has died

    def begin_next(self) -> None:
        """The call that it ran is answered: what is known of it no longer holds."""
        self._next_call_begins()
        if self.idle:
            self.set_idle(False)
        if not self.sent:
            self.taken_back = False

    def _next_call_begins(self) -> None:
        self.begun_at = time.monotonic()
        self.look_at = self.begun_at + LOOK_S
        self.stalled = self.waits = self.unusual = self.extended = False
        self.last_used = -1


def flush(selector: selectors.BaseSelector, worker: WorkerHandle, data: object) -> None:
    """Send a worker what fits; the selector, which has it with `data`, says when the rest does."""
    try:
        events = selectors.EVENT_READ if worker.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
    except OSError:
        return  # it died; its end of the stream says so at the next look
    if selector.get_key(worker.connection).events != events:
        selector.modify(worker.connection, events, data)


def import_hint(page: SharedPage) -> str:
    """What to add to the reason of a timeout: that the call was importing a module; empty where it was not."""
    module = page.importing()
    if not module:
        return ""
    return f"; it was importing {module!r}: at the top of the verifier's file that is done once, before workers start"
