"""The worker process: a warm interpreter that has put every layer in place and clones a cell for each program.

Two processes. The outer one watches the supervisor (by descriptor, so that nothing depends on which thread started it)
and ends everything when the supervisor goes. The inner one, the zygote, is process 1 of the worker's own process
namespace: however it ends, the kernel ends all programs with it. The zygote holds no program, no input and no expected
output; it hands descriptors on.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from sandbox import cell, filesystem, kernel, program
from sandbox.child import FIRST_FREE, Seal, set_constant_limits
from sandbox.filesystem import SitePackage
from sandbox.syscall_filter import SyscallFilter
from sandbox.types import Layer, MissingLayer
from sandbox.worker_settings import WorkerSettings, isolation_to_json

# Modules that programs commonly import; each costs a fresh interpreter more than it costs a fork.
COMMON_MODULES = tuple(
    """
    abc array bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools
    heapq io itertools json linecache math operator queue random re statistics string struct sys textwrap threading
    time traceback types typing
    """.split()  # noqa: SIM905 (a list of 33 quoted words is harder to read)
)
SCRATCH_PREFIX = "verigrpo-sandbox-"
_NAMESPACES = {
    Layer.USER_NAMESPACE: kernel.CLONE_NEWUSER,
    Layer.PROCESS_NAMESPACE: kernel.CLONE_NEWPID,
    Layer.NETWORK_NAMESPACE: kernel.CLONE_NEWNET,
    Layer.IPC_NAMESPACE: kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS,
    Layer.PRIVATE_ROOT: kernel.CLONE_NEWNS,
}
_INNER_ID = 1000  # the one user and group that exist in the user namespace
_FIRST_OWN_UID = 0x60000000  # far above accounts and the ranges of container runtimes; plus the worker's own number
_NO_NAMESPACES = (
    "allow user namespaces (sysctl user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0, "
    "or a container seccomp profile that permits unshare)"
)


class Layers:
    """The record of what was put in place and what could not be."""

    def __init__(self, without: frozenset[Layer]) -> None:
        self.without = without
        self.active: list[Layer] = []
        self.missing: list[MissingLayer] = []

    def wants(self, layer: Layer) -> bool:
        if layer in self.without:
            self.miss(layer, "switched off", "do not switch it off")
            return False
        return True

    def has(self, layer: Layer) -> bool:
        return layer in self.active

    def miss(self, layer: Layer, reason: str, remedy: str) -> None:
        self.missing.append(MissingLayer(layer, reason, remedy))


class Zygote:
    """Puts the layers in place, in the order in which privileges allow it, and then serves."""

    def __init__(self, control: socket.socket, settings: WorkerSettings) -> None:
        self._control, self._settings = control, settings
        self._layers = Layers(settings.without)
        self._scratch = ""
        self._scratch_lock = -1
        self._packages: Sequence[SitePackage] = ()
        # Not the virtual environment's link to it, which programs do not see.
        self._interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

    def run(self) -> NoReturn:
        """Become the outer process; the inner one never returns either."""
        supervisor = os.pidfd_open(self._settings.supervisor)
        if os.getppid() != self._settings.supervisor:
            sys.exit("the supervisor ended before its worker started")
        self._packages = self._probe_packages()
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module("pyseccomp")  # runs the loader's tools to find libseccomp; later it cannot
        namespaces = self._possible_namespaces()
        as_root = os.geteuid() == 0
        uid = self._own_uid()
        if not namespaces & kernel.CLONE_NEWNS:
            self._make_scratch(uid)
        elif as_root:
            # As root, so that an interpreter that only root may read can be bound into the private root.
            kernel.unshare(kernel.CLONE_NEWNS)
            filesystem.enter_private_root(tempfile.gettempdir(), self._packages)
        if uid is not None:
            self._become(uid)
        if namespaces:
            self._enter_namespaces(namespaces)
        inner = os.fork()
        if inner == 0:
            if self._scratch_lock >= 0:
                os.close(self._scratch_lock)
            os.close(supervisor)
            self._be_inner(namespaces, build_root=bool(namespaces & kernel.CLONE_NEWNS) and not as_root)
        self._control.close()
        _wait_for_either(supervisor, inner)
        if self._scratch:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(self._scratch, "run"), 0o700)  # whatever the last program made of it
            shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(0)

    def _probe_packages(self) -> list[SitePackage]:
        """Which third-party packages the preloaded modules bring, found out in a process of its own.

        Importing them here would run their code, and keep their files open, before any layer is in place.
        """
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _import_all(self._settings.preload)
                loaded = {name.partition(".")[0] for name in sys.modules} - {"sandbox", "landlockpy", "pyseccomp"}
                packages = filesystem.site_packages(sorted(loaded))
                os.write(writing, json.dumps([package.path for package in packages]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return [SitePackage(path) for path in json.loads(text or b"[]")]

    def _possible_namespaces(self) -> int:
        """Flags of the namespaces that are wanted and that the kernel grants, tried in a process of its own."""
        wanted = 0
        for layer, flag in _NAMESPACES.items():
            if self._layers.wants(layer):
                wanted |= flag
        if not wanted & kernel.CLONE_NEWUSER:
            wanted = 0
        pid = os.fork()
        if pid == 0:
            try:
                if os.geteuid() == 0:
                    os.setresuid(65534, 65534, 65534)  # programs never run as root
                kernel.unshare(wanted)
            except OSError as problem:
                os._exit(problem.errno or 255)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for layer, flag in _NAMESPACES.items():
            if code == 0 and wanted & flag:
                self._layers.active.append(layer)
            elif layer not in self._layers.without:
                reason = os.strerror(code) if code else "it needs a user namespace"
                self._layers.miss(layer, f"the kernel refuses: {reason}", _NO_NAMESPACES)
        return wanted if code == 0 else 0

    def _own_uid(self) -> int | None:
        """A user that nothing else on the machine runs as; None where that cannot be had."""
        if os.geteuid() != 0:
            return None  # an unprivileged supervisor: no layer is missing that it could have
        if not self._layers.wants(Layer.OWN_UID):
            return None
        uid = _FIRST_OWN_UID + os.getpid()
        with open("/proc/self/uid_map") as table:
            mapped = [tuple(map(int, line.split())) for line in table]
        if not any(inside <= uid < inside + count for inside, _, count in mapped):
            first, _, count = max(mapped, key=lambda row: row[2])
            uid = first + count - 1 - os.getpid() % max(1, count // 2)
        if uid == 0:
            self._layers.miss(Layer.OWN_UID, "only one user is mapped into this container", "map a range of users")
            return None
        if not self._layers.has(Layer.PRIVATE_ROOT) and not _readable_by(uid, filesystem.interpreter_paths()):
            self._layers.miss(
                Layer.OWN_UID,
                f"another user could not read the interpreter in {sys.base_prefix}",
                "install Python where every user may read it",
            )
            return None
        return uid

    def _become(self, uid: int) -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # changing user cleared it, and with it the right to map users
        self._layers.active.append(Layer.OWN_UID)

    def _make_scratch(self, uid: int | None) -> None:
        """A directory on the host, locked while it is in use, so that abandoned ones are known and swept."""
        for entry in os.scandir(self._settings.temporary):
            if entry.name.startswith(SCRATCH_PREFIX):
                owner = entry.stat(follow_symlinks=False).st_uid
                if owner == os.geteuid() or owner >= _FIRST_OWN_UID:
                    _sweep(entry.path)
        self._scratch = tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=self._settings.temporary)
        self._scratch_lock = os.open(self._scratch, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._scratch_lock, fcntl.LOCK_EX)
        # What programs write lies one level below: they may not touch what the lock is on.
        inner = os.path.join(self._scratch, "run")
        os.mkdir(inner, 0o700)
        if uid is not None:
            os.chown(inner, uid, uid)
            os.chown(self._scratch, uid, uid)

    def _enter_namespaces(self, flags: int) -> None:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(flags)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_INNER_ID} {uid} 1"),
            ("gid_map", f"{_INNER_ID} {gid} 1"),
        ):
            descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=self._proc)
            os.write(descriptor, text.encode())
            os.close(descriptor)

    def _be_inner(self, namespaces: int, build_root: bool) -> NoReturn:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        layers, packages = self._layers, self._packages
        if build_root:
            filesystem.enter_private_root(tempfile.gettempdir(), packages)
        if namespaces & kernel.CLONE_NEWNS and namespaces & kernel.CLONE_NEWPID and layers.wants(Layer.PRIVATE_PROC):
            try:
                filesystem.mount_proc(filesystem.SLOT_PROC)
                layers.active.append(Layer.PRIVATE_PROC)
            except OSError as problem:
                remedy = "do not mask parts of /proc in the container"
                layers.miss(Layer.PRIVATE_PROC, str(problem), remedy)
        self._clean_interpreter()
        seal = self._seal()
        self._control.send(isolation_to_json(layers.active, layers.missing))
        _forget_own_modules()
        atexit._clear()  # what our own modules registered is not for programs to run
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, every page of the parent's objects
        serve(self._control, seal)

    def _clean_interpreter(self) -> None:
        """Make this interpreter look to a program like one started for it alone."""
        private_root = self._layers.has(Layer.PRIVATE_ROOT)
        scratch = filesystem.SCRATCH_RUN if private_root else os.path.join(self._scratch, "run")
        self._program_directory = scratch
        standard = (*filesystem.interpreter_paths(), "/usr/")
        third_party = [filesystem.SITE] if private_root else sorted({os.path.dirname(p.path) for p in self._packages})
        if not self._packages:
            third_party = []
        kept = [path for path in sys.path if path.startswith(standard) and "-packages" not in path]
        sys.path[:] = kept + third_party
        sys.path_importer_cache.clear()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("numpy", "__mp_main__")]:
            del sys.modules[name]
        sys.argv[:] = ["main.py"]
        sys.executable = self._interpreter
        sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix
        _import_all((*COMMON_MODULES, *self._settings.preload))
        if self._layers.wants(Layer.CLEAN_ENVIRONMENT):
            os.environ.clear()
            self._layers.active.append(Layer.CLEAN_ENVIRONMENT)
        program.open_standard_streams()
        kernel.limit_malloc_arenas(2)
        os.environ.update(program_environment(scratch, third_party))
        # SIGINT without a handler cannot reach process 1 of a namespace; SIGXFSZ ends a program that writes too much.
        for number in (signal.SIGINT, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)

    def _seal(self) -> Seal:
        layers = self._layers
        rules = syscalls = None
        private_root = layers.has(Layer.PRIVATE_ROOT)
        own_processes = layers.has(Layer.PROCESS_NAMESPACE)
        if layers.wants(Layer.LANDLOCK):
            try:
                with filesystem.landlock_rules(private_root, self._program_directory, self._packages) as made:
                    rules = fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
                layers.active.append(Layer.LANDLOCK)
            except OSError as problem:
                layers.miss(Layer.LANDLOCK, str(problem), "Linux 5.13 or later with landlock among lsm= at boot")
        if layers.wants(Layer.SECCOMP):
            try:
                syscalls = SyscallFilter(own_processes, own_processes, private_root)
                layers.active.append(Layer.SECCOMP)
            except (ImportError, OSError, RuntimeError) as problem:
                layers.miss(Layer.SECCOMP, str(problem), "install pyseccomp and libseccomp (Debian: libseccomp2)")
        kernel.shrink_capability_bounds()
        simple = (
            Layer.RESOURCE_LIMITS,
            Layer.WATCH,
            Layer.NO_CAPABILITIES,
            Layer.CLOSED_DESCRIPTORS,
            Layer.DESCENDANT_KILL,
        )
        layers.active += [layer for layer in simple if layers.wants(layer)]
        if layers.has(Layer.RESOURCE_LIMITS):
            set_constant_limits()
        pages = [int(number) for number in cell_statm(self._proc)]
        page = os.sysconf("SC_PAGE_SIZE")
        return Seal(
            scratch=self._program_directory,
            private_root=private_root,
            process_namespace=own_processes,
            private_proc=layers.has(Layer.PRIVATE_PROC),
            rules=rules,
            syscalls=syscalls,
            resource_limits=layers.has(Layer.RESOURCE_LIMITS),
            limit_processes=layers.has(Layer.OWN_UID) or layers.has(Layer.USER_NAMESPACE),
            watch=layers.has(Layer.WATCH),
            no_capabilities=layers.has(Layer.NO_CAPABILITIES),
            close_descriptors=layers.has(Layer.CLOSED_DESCRIPTORS),
            descendant_kill=layers.has(Layer.DESCENDANT_KILL),
            base_address_space=pages[0] * page,
            base_memory=pages[1] * page,
            proc=self._proc,
        )


def program_environment(scratch: str, third_party: Sequence[str]) -> dict[str, str]:
    """The whole environment of a program."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(third_party),
        "MALLOC_ARENA_MAX": "2",  # otherwise each thread reserves 64 MiB of the address space that a program has
        # Thread pools as wide as the machine would fight over the core that a program gets.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def cell_statm(proc: int) -> list[bytes]:
    """Sizes of this process in pages: reserved, resident, ..."""
    descriptor = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return os.read(descriptor, 256).split()
    finally:
        os.close(descriptor)


def _import_all(names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "numpy" in names:
        for name in ("numpy.random", "numpy.linalg", "numpy.fft"):  # imported on first use, otherwise by every child
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _readable_by(uid: int, paths: Sequence[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        os.setresuid(uid, uid, uid)
        os._exit(0 if all(os.access(path, os.R_OK | os.X_OK) for path in paths) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _sweep(path: str) -> None:
    """Remove a scratch directory whose worker is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass  # in use
    finally:
        os.close(lock)


def _wait_for_either(supervisor: int, inner: int) -> None:
    """Return once the supervisor or the zygote has ended, with the zygote reaped."""
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    poll.register(os.pidfd_open(inner), select.POLLIN)
    poll.poll()
    os.kill(inner, signal.SIGKILL)
    os.waitpid(inner, 0)


def _forget_own_modules() -> None:
    """Programs find none of our modules by name."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("sandbox", "landlockpy", "pyseccomp"):
            del sys.modules[name]


def serve(control: socket.socket, seal: Seal) -> NoReturn:
    """Clone a cell for every request until the supervisor closes the channel."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    cells: dict[int, int] = {}  # process descriptor -> process number
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
                pid = cell.start(seal, channel, request, [control.fileno(), *cells])
            handle = os.pidfd_open(pid)
            cells[handle] = pid
            poll.register(handle, select.POLLIN)


def main() -> NoReturn:
    """Entry point: the control socket's descriptor is the last argument."""
    control = socket.socket(fileno=int(sys.argv[-1]))
    settings = WorkerSettings.from_json(control.recv(cell.MAX_MESSAGE))
    Zygote(control, settings).run()
