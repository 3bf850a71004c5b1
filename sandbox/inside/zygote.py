"""The worker: a preloaded interpreter that sets up every layer and clones a cell for each program.

A worker consists of two processes. The outer process watches the supervisor, and ends everything when the supervisor
ends. It watches a descriptor of the supervisor, so it does not depend on the supervisor's threads. The inner process,
the zygote, is process 1 of the worker's process namespace: when it ends, the kernel ends all programs. The zygote holds
no program, no input and no expected output; it only passes descriptors on.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sandbox import visible
from sandbox.group_meter import GroupMeter
from sandbox.inside import cell, interpreter, memory_map, serving
from sandbox.inside.child import set_constant_limits
from sandbox.inside.isolation import filesystem, kernel, layers
from sandbox.inside.isolation.filesystem import SitePackage
from sandbox.inside.isolation.landlock_rules import RulesMaker
from sandbox.inside.isolation.layers import Layers
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.isolation.syscall_filter import SyscallFilter
from sandbox.types import Layer
from sandbox.worker_settings import WorkerSettings, isolation_to_json

if TYPE_CHECKING:
    from sandbox.inside.isolation.host_scratch import HostScratch

_ALWAYS_POSSIBLE = (
    Layer.RESOURCE_LIMITS,
    Layer.WATCH,
    Layer.NO_CAPABILITIES,
    Layer.CLOSED_DESCRIPTORS,
    Layer.DESCENDANT_KILL,
)


class Zygote:
    """Sets up the layers, in the order that its privileges allow, and then serves."""

    def __init__(self, control: socket.socket, settings: WorkerSettings) -> None:
        self._control, self._settings = control, settings
        self._layers = Layers(settings.without)
        self._packages: Sequence[SitePackage] = ()
        self._host_scratch: HostScratch | None = None
        self._syscalls: SyscallFilter | None = None
        self._scratch = filesystem.SCRATCH_RUN
        self._meter: GroupMeter | None = None
        self._rules: int | str | None = None  # descriptor of the Landlock rules, or the reason why there are none

    def run(self) -> NoReturn:
        """Fork the inner process and become the outer process. Does not return in either process."""
        supervisor = os.pidfd_open(self._settings.supervisor)
        if os.getppid() != self._settings.supervisor:
            sys.exit("the supervisor ended before its worker started")
        # The limit of the supervisor's address space must not hold for programs, which have separate limits.
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        # The zygote holds a descriptor of each cell.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        unreadable = self._run_where_others_can_read()
        self._join_control_group()
        self._packages = self._probe_packages()
        self._control.recv(cell.MAX_MESSAGE)  # remove the settings from the socket; `main` has only peeked at them
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        namespaces = layers.possible_namespaces(self._layers)
        mounts = bool(namespaces & kernel.CLONE_NEWNS)
        if self._layers.wants(Layer.SECCOMP):
            try:
                self._syscalls = SyscallFilter(bool(namespaces & kernel.CLONE_NEWPID), mounts)
            except OSError as problem:
                remedy = "install pyseccomp and libseccomp (Debian: libseccomp2)"
                self._layers.miss(Layer.SECCOMP, str(problem), remedy)
        as_root = os.geteuid() == 0
        uid = layers.own_uid(self._layers, unreadable)
        if not mounts:
            from sandbox.inside.isolation.host_scratch import HostScratch

            if uid is not None:
                self._copy_packages()
            self._host_scratch = HostScratch(self._settings.temporary, uid)
            self._scratch = self._host_scratch.run
            self._make_rules(private_root=False)
        elif as_root:
            # This is done as root, because some interpreters are readable only by root, and the interpreter must be
            # mounted in the private root.
            kernel.unshare(kernel.CLONE_NEWNS)
            self._make_rules(private_root=True)
        if uid is not None:
            layers.become(uid, self._layers)
        if namespaces:
            layers.enter_namespaces(namespaces, self._proc)
        # Merge now: mappings that were written to before a fork cannot be merged after the fork.
        memory_map.merge_mappings(self._proc)
        inner = os.fork()
        if inner == 0:
            if self._host_scratch is not None:
                self._host_scratch.let_go()
            os.close(supervisor)
            self._be_inner(namespaces, build_root=mounts and not as_root)
        self._control.close()
        _wait_for_either(supervisor, inner)
        if self._host_scratch is not None:
            self._host_scratch.remove()
        os._exit(0)

    def _run_where_others_can_read(self) -> str:
        """Continue in a copy of the interpreter if only root can read this interpreter and it cannot be mounted.

        Return the reason why no copy could be made; empty if no copy is needed.
        """
        if os.geteuid() != 0 or Layer.OWN_UID in self._layers.without:
            return ""
        from sandbox.inside import interpreter_copy

        if interpreter_copy.readable(visible.interpreter_files()):
            return ""
        if layers.possible_namespaces(Layers(self._settings.without)) & kernel.CLONE_NEWNS:
            return ""
        try:
            executable = interpreter_copy.copied_interpreter(self._settings.temporary)
        except OSError as problem:
            return str(problem)
        # The search path must not contain the old standard library, because the copy has its own standard library.
        old = (visible.standard_library(), os.path.dirname(visible.standard_library()) + "/python")
        kept = [
            path
            for path in os.environ.get("PYTHONPATH", "").split(":")
            if not os.path.realpath(path).startswith(old) or "-packages" in path
        ]
        os.execve(executable, [executable, *sys.orig_argv[1:]], os.environ | {"PYTHONPATH": ":".join(kept)})

    def _copy_packages(self) -> None:
        """Copy the preloaded packages that only root can read; drop them if they cannot be copied."""
        from sandbox.inside import interpreter_copy

        try:
            self._packages = interpreter_copy.readable_packages(self._packages, self._settings.temporary)
        except OSError:
            self._packages = [item for item in self._packages if interpreter_copy.readable([item.path])]

    def _join_control_group(self) -> None:
        group = self._settings.control_group
        if not self._layers.wants(Layer.CGROUP):
            return
        if not isinstance(group, str):
            for descriptor in group.join:
                os.write(descriptor, b"0")
                os.close(descriptor)
            self._meter = GroupMeter(group)
            self._layers.active.append(Layer.CGROUP)
        else:
            self._layers.miss(Layer.CGROUP, group, layers.NO_CONTROL_GROUP)

    def _probe_packages(self) -> list[SitePackage]:
        """List the third-party packages of the preloaded modules, in a separate process.

        Importing the modules here would run their code, and keep their files open, before any layer is set up.
        """
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                packages = interpreter.third_party_packages(self._settings.preload)
                os.write(writing, json.dumps([package.path for package in packages]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return [SitePackage(path) for path in json.loads(text or b"[]")]

    def _make_rules(self, private_root: bool) -> None:
        """Enter the private root if `private_root`, and make Landlock rules for the files visible after that."""
        maker = None
        if self._layers.wants(Layer.LANDLOCK):
            maker = RulesMaker(private_root, self._scratch, self._packages)
        if private_root:
            filesystem.enter_private_root(self._settings.temporary, self._packages)
        if maker is not None:
            self._rules = maker.make()

    def _be_inner(self, namespaces: int, build_root: bool) -> NoReturn:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        record = self._layers
        if build_root:
            self._make_rules(private_root=True)
        private_root = record.has(Layer.PRIVATE_ROOT)
        if private_root and namespaces & kernel.CLONE_NEWPID and record.wants(Layer.PRIVATE_PROC):
            try:
                filesystem.mount_proc(filesystem.SLOT_PROC)
                record.active.append(Layer.PRIVATE_PROC)
            except OSError as problem:
                record.miss(Layer.PRIVATE_PROC, str(problem), "do not mask parts of /proc in the container")
        third_party: list[str] = []
        if self._packages:
            places = {os.path.dirname(package.path) for package in self._packages}
            third_party = [filesystem.SITE] if private_root else sorted(places)
        clean = record.wants(Layer.CLEAN_ENVIRONMENT)
        interpreter.prepare(self._settings.preload, self._scratch, third_party, clean, self._proc)
        if clean:
            record.active.append(Layer.CLEAN_ENVIRONMENT)
        memory_map.merge_mappings(self._proc)
        memory_map.enlarge_code_pages(self._proc)
        seal = self._seal()
        self._control.send(isolation_to_json(record.active, record.missing))
        interpreter.settle()
        serving.serve(self._control, seal)

    def _seal(self) -> Seal:
        record = self._layers
        if isinstance(self._rules, int):
            record.active.append(Layer.LANDLOCK)
        elif self._rules is not None:
            record.miss(Layer.LANDLOCK, self._rules, "Linux 5.13 or later with landlock among lsm= at boot")
        if self._syscalls is not None:
            record.active.append(Layer.SECCOMP)
        kernel.shrink_capability_bounds()
        record.active += [layer for layer in _ALWAYS_POSSIBLE if record.wants(layer)]
        if record.has(Layer.RESOURCE_LIMITS):
            set_constant_limits()
        reserved, resident, others = _own_memory(self._proc)
        return Seal(
            scratch=self._scratch,
            private_root=record.has(Layer.PRIVATE_ROOT),
            process_namespace=record.has(Layer.PROCESS_NAMESPACE),
            private_proc=record.has(Layer.PRIVATE_PROC),
            rules=self._rules if isinstance(self._rules, int) else None,
            syscalls=self._syscalls,
            resource_limits=record.has(Layer.RESOURCE_LIMITS),
            limit_processes=record.has(Layer.OWN_UID) or record.has(Layer.USER_NAMESPACE),
            watch=record.has(Layer.WATCH),
            no_capabilities=record.has(Layer.NO_CAPABILITIES),
            close_descriptors=record.has(Layer.CLOSED_DESCRIPTORS),
            descendant_kill=record.has(Layer.DESCENDANT_KILL),
            base_address_space=reserved,
            base_memory=resident,
            base_other_mappings=others,
            proc=self._proc,
            processors=frozenset(os.sched_getaffinity(0)),
            meter=self._meter,
        )


def _own_memory(proc: int) -> tuple[int, int, int]:
    """Memory of this process in bytes: reserved; resident; and reserved, without the private writable part."""
    descriptor = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        size, resident, _, _, _, data, _ = map(int, os.read(descriptor, 256).split())
    finally:
        os.close(descriptor)
    page = os.sysconf("SC_PAGE_SIZE")
    return size * page, resident * page, (size - data) * page


def _wait_for_either(supervisor: int, inner: int) -> None:
    """Wait until the supervisor or the zygote ends, then end and reap the zygote."""
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    poll.register(os.pidfd_open(inner), select.POLLIN)
    poll.poll()
    os.kill(inner, signal.SIGKILL)
    os.waitpid(inner, 0)


def main() -> NoReturn:
    """Entry point. The last command-line argument is the descriptor of the control socket."""
    control = socket.socket(fileno=int(sys.argv[-1]))
    # Only peek, because a copy of the interpreter may replace this process and must then read the settings again.
    settings = WorkerSettings.from_json(control.recv(cell.MAX_MESSAGE, socket.MSG_PEEK))
    Zygote(control, settings).run()
