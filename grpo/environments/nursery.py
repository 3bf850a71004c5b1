"""The process that forks the processes of conversations: small, single-threaded, and with the user's code loaded.

A fork of the driver would copy locks that the driver's threads may hold at that moment. Starting an interpreter for
each conversation costs a hundred times more than a fork. If a thread still runs after the user's code was loaded, the
nursery starts itself again without this code, and the process of each conversation loads the code itself.

Run as `python -m grpo.environments.nursery CONTROL_FD SETUP_FD PARENT_PID SCHEMAS [bare]`. SCHEMAS is 1 if the driver
needs the schemas of the tools. The driver sends `fork ID`, with a socket, and `kill ID`. The nursery sends `ready`,
with a file of the schemas, or `failed REASON`; then `forked ID`, `unforked ID REASON` and `ended ID STATUS`. A status
below 0 is a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import pickle
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from grpo.environments.sandbox_tools import SandboxSessions
from grpo.environments.schemas import tool_schemas
from grpo.environments.spec import SANDBOX_TOOLS, WorldSpec, choose_environment
from grpo.environments.world import SessionFactory, ToolWorld, load_world
from grpo.environments.world_process import MakeWorld, become_world, reason_of
from rewards.named_code import locate
from rewards.pool.nursery import die_with_parent

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_COMMAND_BYTES = 64
_LONGEST_REASON = 4000


def tool_worlds(spec: WorldSpec, sessions: SessionFactory | None) -> MakeWorld:
    """Load the tools and environments of a run, and return the maker of their worlds.

    Args:
        spec: tools and environments.
        sessions: opens a sandbox session; None if no tool needs it.

    Raises:
        ValueError: the code of the spec cannot be used.
    """
    loaded = load_world(spec)
    return lambda row: ToolWorld(spec, loaded, choose_environment(spec, row), sessions)


def start_sandbox(setup: Mapping[str, Any], closing: contextlib.ExitStack) -> SessionFactory | None:
    """Start the sandbox if a tool needs it; return what opens its sessions.

    Args:
        setup: settings from the driver.
        closing: ends the sandbox.

    Raises:
        ValueError: the tools cannot run on this machine.
        sandbox.SandboxError: the sandbox could not be started.
    """
    if setup["sessions"] is not None:
        factory: SessionFactory = locate(setup["sessions"], "sessions")
        return factory
    if setup["factory"] is not None or not set(setup["spec"].tools) & set(SANDBOX_TOOLS):
        return None
    return closing.enter_context(contextlib.closing(SandboxSessions(setup["spec"])))


def load_maker(setup: Mapping[str, Any], sessions: SessionFactory | None) -> MakeWorld:
    """Load the maker of worlds that a set-up names.

    Raises:
        ValueError: the code cannot be used.
        Exception: any exception of the code.
    """
    if setup["factory"] is None:
        return tool_worlds(setup["spec"], sessions)
    make: MakeWorld = locate(setup["factory"], "factory")(setup["spec"])
    return make


class ConversationNursery:
    """Forks, kills and reaps the processes of conversations, until the driver closes the control socket."""

    def __init__(
        self, control: socket.socket, parent: int, memory_bytes: int | None, load: Callable[[], MakeWorld]
    ) -> None:
        """Begin without processes.

        Args:
            control: socket to the driver.
            parent: process id of the driver.
            memory_bytes: limit of the address space of each process; None for no limit.
            load: function that returns the maker of worlds, called in each process.
        """
        self._control, self._parent, self._memory_bytes, self._load = control, parent, memory_bytes, load
        self._pids: dict[int, int] = {}
        self._identities: dict[int, int] = {}
        # A signal interrupts no system call of Python, so a signal arrives as a byte in a socket.
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._driver_died = False
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Follow the driver's commands until the driver is gone; then kill all processes."""
        # From now on the nursery survives the driver's death for a moment, in which it kills the children of tools.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        self._driver_died = self._driver_died or os.getppid() != self._parent
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._driver_died:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    self._woken.recv(4096)
                    self._reap()
                if self._control in ready and not self._follow():
                    break
        for pid in self._identities:
            _kill(pid)
        for pid in self._identities:
            os.waitpid(pid, 0)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._driver_died = True

    def _follow(self) -> bool:
        """Follow a command; return False if the driver is gone."""
        try:
            command, descriptors, _, _ = socket.recv_fds(self._control, _COMMAND_BYTES, 1)
        except ConnectionResetError:  # The driver ended without reading all that the nursery said.
            return False
        if not command:
            return False
        verb, identity = command.split()
        if verb == b"fork":
            self._fork(int(identity), descriptors)
        elif int(identity) in self._pids:  # Otherwise the process has ended.
            _kill(self._pids[int(identity)])
        return True

    def _fork(self, identity: int, descriptors: list[int]) -> None:
        nursery = os.getpid()
        if not descriptors:
            self._say(f"unforked {identity} this machine has no file descriptor for its connection; see `ulimit -n`")
            return
        try:
            child = os.fork()
        except OSError as problem:
            self._say(f"unforked {identity} {problem.strerror}; are there too many processes, or too little memory?")
        else:
            if child == 0:
                self._become(nursery, descriptors[0])
            with contextlib.suppress(OSError):  # The child may have made its group, or have ended.
                os.setpgid(child, child)
            self._pids[identity], self._identities[child] = child, identity
            self._say(f"forked {identity}")
        finally:
            os.close(descriptors[0])

    def _become(self, nursery: int, descriptor: int) -> NoReturn:
        # Make a process group, so that the children of a tool are killed too.
        os.setpgid(0, 0)
        die_with_parent(nursery)
        for mine in (self._control, self._woken, self._wake):
            mine.close()
        become_world(socket.socket(fileno=descriptor), self._memory_bytes, self._load)

    def _reap(self) -> None:
        while self._identities:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            # Kill the children of a tool before the process is reaped: until then, nobody else gets its id.
            _kill(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            identity = self._identities.pop(ended.si_pid, None)
            if identity is not None:
                del self._pids[identity]
                self._say(f"ended {identity} {os.waitstatus_to_exitcode(status)}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # The next command shows the driver's end.
            self._control.send(text.encode()[:_LONGEST_REASON])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def write_schemas(spec: WorldSpec, load: Callable[[], MakeWorld], file: int) -> None:
    """Write the schemas of the tools, or what is wrong with the tools, as JSON.

    A child of the nursery makes the schemas, because the import of transformers would fill the memory of each
    conversation's process.

    Args:
        spec: tools and environments.
        load: function that loads the code of the tools, unless it is loaded.
        file: descriptor of the file.
    """
    child = os.fork()
    if child == 0:
        try:
            load()
            text = json.dumps({"tools": tool_schemas(spec)})
        except (Exception, SystemExit) as problem:
            text = json.dumps({"failed": reason_of(problem)})
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(text)
        os._exit(0)
    os.waitpid(child, 0)


def main(arguments: list[str]) -> int:
    """Load the user's code, announce the schemas, and follow the driver's commands."""
    control_descriptor, setup_descriptor, parent = (int(each) for each in arguments[:3])
    schemas, bare = arguments[3] == "1", "bare" in arguments[4:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    # The log gets whole lines, also those of a process that is killed later.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    control = socket.socket(fileno=control_descriptor)
    with os.fdopen(os.dup(setup_descriptor), "rb") as file:
        file.seek(0)
        setup = pickle.load(file)
    sys.path[:] = setup["path"]
    with contextlib.ExitStack() as closing:
        try:
            sessions = start_sandbox(setup, closing)
            # A fork of a process that has loaded the code does not load it again.
            load: Callable[[], MakeWorld] = functools.cache(functools.partial(load_maker, setup, sessions))
            if not bare:
                load()
        except (Exception, SystemExit) as problem:
            control.send(f"failed {reason_of(problem)}".encode()[:_LONGEST_REASON])
            return 1
        if not bare and len(os.listdir("/proc/self/task")) > 1:
            closing.close()
            for inherited in (control_descriptor, setup_descriptor):
                os.set_inheritable(inherited, True)
            os.execv(
                sys.executable,
                [sys.executable, "-P", "-m", "grpo.environments.nursery", *arguments[:4], "bare"],
            )
        os.close(setup_descriptor)
        file_of_schemas = os.memfd_create("schemas")
        if schemas:
            write_schemas(setup["spec"], load, file_of_schemas)
        gc.collect()
        gc.freeze()  # Collections do not touch the objects shared with the children, so their pages stay shared.
        socket.send_fds(control, [b"ready"], [file_of_schemas])
        os.close(file_of_schemas)
        ConversationNursery(control, parent, setup["memory_bytes"], load).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
