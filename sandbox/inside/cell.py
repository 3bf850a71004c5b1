"""The process around one program: it holds the program's namespaces and runs the program once per test.

The worker clones a cell. The cell mounts a scratch directory and `/proc`, then waits for requests on its channel. For
each test it forks a child that becomes the program, and watches the child. After the test it kills all other processes
and empties the scratch directory. Its reply says whether the program was `pristine`: the program ended by itself and
left nothing behind. After a pristine program the cell serves the next program; otherwise the cell is thrown away with
its namespaces. In a process namespace the cell is process 1: no program can signal it, and when it ends, the kernel
kills all processes inside. The cell is trusted code; it never sees an expected output.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import time
from typing import Any, NoReturn

from sandbox.inside import child, processes
from sandbox.inside.child import Become
from sandbox.inside.isolation import filesystem, kernel
from sandbox.inside.isolation.cell_scratch import Scratch
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.nursery import CellNursery
from sandbox.inside.template import TemplateLost
from sandbox.inside.watch import Usage, Watch
from sandbox.types import STDERR_BYTES, ProgramStatus

MAX_MESSAGE = 1 << 16
_MAX_DESCRIPTORS = 253  # the kernel's bound for one message
_QUICK_SECONDS = 0.003  # a test that takes longer computes much, or its processor is busy
_LEAST_SECONDS = 0.001  # time for a test that starts just before the time for all tests ends


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors; the message is None once the channel is closed."""
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, _MAX_DESCRIPTORS)
    return (json.loads(message) if message else None), descriptors


def _read_now(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_MESSAGE)
    except BlockingIOError:
        return b""


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _cut(descriptor: int, most: int) -> None:
    """Cut an output to `most` bytes to free memory: a batch keeps its outputs until all of its tests have run."""
    if os.fstat(descriptor).st_size > most:
        os.ftruncate(descriptor, most)


def serve(seal: Seal, channel: socket.socket, limits: dict[str, Any]) -> NoReturn:
    """Run programs until the channel closes. Never returns.

    Raises:
        Become: raised in each process that the cell forks.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # programs of the same user cannot open the cell's memory and descriptors
    cell = Cell(seal, limits, channel.fileno())
    while True:
        request, descriptors = receive(channel)
        if request is None:
            os._exit(0)
        if request["kind"] == "stop":
            continue  # the run to be stopped has already ended
        if request["kind"] == "forget":
            cell.forget_program()
            continue
        try:
            replies = cell.run_all(request, descriptors)
        except OSError as problem:
            _close(descriptors)
            replies = [{"status": ProgramStatus.SANDBOX_ERROR.value, "reason": f"the cell failed: {problem}"}]
        channel.send(json.dumps(replies).encode())


class Cell:
    """The namespaces of one program, and the runs in them.

    Raises:
        OSError: a mount is refused.
    """

    def __init__(self, seal: Seal, limits: dict[str, Any], channel: int) -> None:
        self._seal = seal
        self._channel = channel
        self._last_pid: int | None = None
        self._quick = True  # whether the last test was quick
        self._scratch = Scratch(seal, limits["disk_bytes"], limits["files"])
        if seal.private_proc:
            # Only the worker's `/proc` has this file; the programs' `/proc` does not. The file shows the namespace of
            # the process that reads it.
            self._last_pid = os.open(filesystem.SLOT_PROC + "/sys/kernel/ns_last_pid", os.O_RDWR)
            filesystem.mount_proc(filesystem.VIEW_PROC, processes_only=True)
            filesystem.hide_slot_proc()
        if not seal.process_namespace:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        # `seal.proc` belongs to an outer namespace, in which this process has another number.
        self._own_pid = int(os.readlink("self", dir_fd=seal.proc))
        children = os.open(f"{self._own_pid}/task/{self._own_pid}/children", os.O_RDONLY, dir_fd=seal.proc)
        self._nursery = CellNursery(seal, children)

    def run_all(self, request: dict[str, Any], descriptors: list[int]) -> list[dict[str, Any]]:
        """Run a program once per input, until the time for all inputs ends or the supervisor asks for a stop."""
        program, *streams = descriptors
        channel = streams[3 * request["runs"] :]
        limits, end = request["limits"], request["end"]
        replies: list[dict[str, Any]] = []
        if request["kind"] == "run" and self._quick:
            self._nursery.stay()
        for first in range(0, 3 * request["runs"], 3):
            remaining = end - time.monotonic()
            if replies and remaining <= 0:
                break
            if remaining < limits["wall_s"]:
                request["limits"] = limits | {"wall_s": max(remaining, _LEAST_SECONDS)}
            replies.append(self.run(request, [program, *streams[first : first + 3], *channel]))
            self._quick = replies[-1]["wall_s"] < _QUICK_SECONDS
            if not self._quick:
                self._nursery.roam()
            if replies[-1]["stopped"]:
                break
        _close(descriptors)
        self._nursery.roam()
        replies[-1]["pristine"] = replies[-1]["pristine"] and self._nursery.sound()
        return replies

    def run(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Run a program once and remove every trace of it."""
        if self._last_pid is not None:
            # A program must not learn from its process number what ran here before it.
            with contextlib.suppress(PermissionError):
                os.pwrite(self._last_pid, b"1", 0)
        self._begin(request, descriptors[1:4])
        self._nursery.prepare(request, descriptors[0])
        pid, failed = self._start(request, descriptors)
        started = time.monotonic()
        limits, meter = request["limits"], self._seal.meter
        watch = Watch(
            self._own_pid, self._seal, limits, descriptors[2:4], self._channel, self._nursery.numbers, self._last_pid
        )
        verdict = watch.until_end(pid, started)
        if verdict is not None:
            self._kill(pid)
        _, wait_status, rusage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(wait_status)
        wall = time.monotonic() - started
        usage = watch.usage.joined(rusage)
        left_behind = self._kill_descendants() if self._seal.descendant_kill else False
        setup_problem = b"" if failed is None else _read_now(failed)
        if verdict is None and (
            usage.memory_bytes > watch.allowed_memory or (code != 0 and meter is not None and meter.ran_out())
        ):
            verdict = ProgramStatus.MEMORY
        reply = self._judge(verdict, code, usage, limits, descriptors)
        _cut(descriptors[2], limits["output_bytes"])
        _cut(descriptors[3], STDERR_BYTES)
        if setup_problem:
            reply |= {"status": ProgramStatus.SANDBOX_ERROR.value, "reason": setup_problem.decode("utf-8", "replace")}
        untouched = self._scratch.untouched()
        if not untouched:
            if not self._nursery.empty:
                self._nursery.give_up()  # `empty` replaces the working directory of the nursery's processes
            self._scratch.empty()
        if failed is not None:
            os.close(failed)
        pristine = verdict is None and code >= 0 and not left_behind and untouched
        return reply | {"wall_s": wall, "pristine": pristine, "stopped": verdict is ProgramStatus.SIGNAL}

    def _begin(self, request: dict[str, Any], streams: list[int]) -> None:
        """Reset the times and counters that could tell a program about earlier runs in this cell."""
        for descriptor in streams:
            with contextlib.suppress(PermissionError):
                os.utime(descriptor)
        self._scratch.begin()
        if self._seal.meter is not None:
            self._seal.meter.begin(request["limits"], request.get("beside", 0))

    def _kill(self, pid: int) -> None:
        """Kill a run's first process and, at the same moment, every process that the first process has started."""
        with contextlib.suppress(ProcessLookupError):
            if self._seal.process_namespace and self._seal.descendant_kill:
                os.kill(-1, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)

    def forget_program(self) -> None:
        """Prepare for another program."""
        self._nursery.forget_program()

    def _start(self, request: dict[str, Any], descriptors: list[int]) -> tuple[int, int | None]:
        """Start the program; return its process number and, if it seals itself, a pipe that says why this failed."""
        if not self._nursery.empty:
            try:
                return self._nursery.fork_test(descriptors[0], descriptors[1:4]), None
            except TemplateLost:
                self._nursery.give_up()
                self._kill_descendants()
                for descriptor in descriptors[1:4]:
                    os.lseek(descriptor, 0, os.SEEK_SET)
                for descriptor in descriptors[2:4]:
                    os.ftruncate(descriptor, 0)
        self._nursery.roam()
        failed, failure = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = kernel.clone(0)
        if pid == 0:
            raise Become(functools.partial(child.become_program, self._seal, request, descriptors, failure))
        os.close(failure)
        return pid, failed

    def _judge(
        self, verdict: ProgramStatus | None, code: int, usage: Usage, limits: dict[str, Any], descriptors: list[int]
    ) -> dict[str, Any]:
        """Return how the program ended. If it passed several limits, return the most informative limit."""
        status = verdict
        if status is None and max(os.fstat(number).st_size for number in descriptors[2:4]) > limits["output_bytes"]:
            status = ProgramStatus.OUTPUT
        if status is None and (code == -signal.SIGXCPU or usage.cpu_s > limits["cpu_s"]):
            status = ProgramStatus.CPU_TIME
        if status is None and code != 0 and (code == -signal.SIGXFSZ or self._scratch.full()):
            status = ProgramStatus.DISK
        if status is None:
            status = ProgramStatus.OK if code == 0 else ProgramStatus.NONZERO_EXIT if code > 0 else ProgramStatus.SIGNAL
        return {
            "status": status.value,
            "exit_code": code,
            "cpu_s": usage.cpu_s,
            "memory_bytes": usage.memory_bytes,
        }

    def _kill_descendants(self) -> bool:
        """Kill and reap every process that the program left running; return whether there was any."""
        any_running = False
        if not self._nursery.empty:
            if self._nursery.alone():
                return False
            self._nursery.close()
            any_running = True
        while True:
            if self._seal.process_namespace:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # all processes of this namespace at once, except process 1
            else:
                for pid in processes.children(self._seal.proc, self._own_pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return any_running
            any_running = True
