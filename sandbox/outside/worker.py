"""The supervisor's handle of one worker process. It starts and stops the worker, and opens cells in it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandbox.outside.cell_handle import CellHandle, WorkerLost, limits_message
from sandbox.outside.control_group import ControlGroup, delegated_group
from sandbox.types import Isolation, Layer, Limits, SandboxError
from sandbox.worker_settings import WorkerSettings, isolation_from_json

_START_SECONDS = 60.0  # enough to import large modules on a busy machine
_STOP_SECONDS = 3.0
_MAX_REPORT = 1 << 16
_MAX_IDLE_CELLS = 4  # each idle cell is for different limits
_STDERR_BYTES = 1 << 16
_PACKAGE = str(Path(__file__).resolve().parents[1])
# Each fork copies all pages and mappings of its worker, so the worker imports little. It skips `sandbox/__init__.py`,
# which imports asyncio and other modules that only supervisors need. It hides the compression libraries from `shutil`.
# It also skips `site`, which would run the `.pth` files of the environment.
_BOOT = """
import sys, types
for name in ("bz2", "lzma", "zlib"):
    sys.modules[name] = None
package = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
sys.modules["sandbox"] = package
from sandbox.inside.zygote import main
main()
"""
# With a fixed hash seed, sets have the same order in every run, so a program prints the same output.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # With this variable, functions of shared libraries are looked up once in the worker, not again in every program.
    "LD_BIND_NOW": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Worker:
    """One worker process. Only one thread at a time may use it.

    Raises:
        SandboxError: the worker could not start; the message contains the end of its standard error.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._owner = os.getpid()
        self._idle: dict[tuple[int, int], CellHandle] = {}
        self._group: ControlGroup | None = None
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        settings = self._settings
        passed = [theirs.fileno()]
        if Layer.CGROUP not in settings.without:
            group = make_group()
            files = group if isinstance(group, str) else group.files
            settings = replace(settings, control_group=files or "none could be made")
            if isinstance(group, ControlGroup):
                self._group = group
                passed += group.files.all if group.files else ()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-P", "-B", "-c", _BOOT, _PACKAGE, str(theirs.fileno())],
                    env=self._inherited() | _ENVIRONMENT | {"PYTHONPATH": ":".join(self._settings.search_path)},
                    cwd="/",
                    pass_fds=passed,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                )
            ours.settimeout(_START_SECONDS)
            self._control = ours
            try:
                ours.send(settings.to_json())
                report = ours.recv(_MAX_REPORT)
            except OSError as problem:
                report = b""
                os.write(stderr, f"\n{problem}".encode())
            if not report:
                self.stop()
                text = os.pread(stderr, _STDERR_BYTES, 0).decode("utf-8", "replace").strip()
                raise SandboxError(f"a sandbox worker could not start: {text[-1500:] or 'it printed no message'}")
            self.isolation: Isolation = isolation_from_json(report)
        finally:
            if self._group is not None:
                self._group.close_descriptors()
            os.close(stderr)

    def _inherited(self) -> dict[str, str]:
        """The supervisor's environment if a test leaves out the clean environment, otherwise an empty dict."""
        return dict(os.environ) if Layer.CLEAN_ENVIRONMENT in self._settings.without else {}

    @property
    def pid(self) -> int:
        """Process number of the worker's outer process."""
        return self._process.pid

    @property
    def allows_executables(self) -> bool:
        """Whether programs may start other programs. This is allowed only if namespaces contain the other programs."""
        return {Layer.PROCESS_NAMESPACE, Layer.PRIVATE_ROOT} <= set(self.isolation.active)

    def stop(self) -> None:
        """End the worker, which ends all its programs. Can be called twice.

        In a fork of the process that started the worker, this only closes the fork's connection to the worker.
        """
        self.close_idle_cells()
        self._control.close()  # this ends the zygote; the outer process waits for the end of the zygote, and cleans up
        if self._owner != os.getpid():
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._group is not None:
            self._group.remove()
            self._group = None

    def open_cell(self, limits: Limits) -> CellHandle:
        """Return a cell for one program: a kept cell that is still pristine, or otherwise a new cell.

        Raises:
            WorkerLost: the worker is gone.
        """
        idle = self._idle.pop((limits.disk_bytes, limits.files), None)
        if idle is not None:
            return idle
        if self._group is not None:
            self._group.allow(limits)
        ours = self.clone_cell(limits_message(limits), [])
        kind = (limits.disk_bytes, limits.files)
        return CellHandle(ours, self.isolation, lambda cell: self._keep(cell, kind))

    def clone_cell(self, request: dict[str, Any], descriptors: list[int]) -> socket.socket:
        """Start a cell; return the connection to it. Forks of the process that made the worker may call this too.

        Args:
            request: see `sandbox/inside/serving.py`.
            descriptors: descriptors that a session's cell gets.

        Raises:
            WorkerLost: the worker is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                # A message is sent as a whole, so processes that share the socket do not disturb each other.
                socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno(), *descriptors])
            except OSError as problem:
                ours.close()
                raise WorkerLost(f"the worker is gone: {problem}") from problem
        return ours

    def close_idle_cells(self) -> None:
        """End the cells that are kept for the next program."""
        for cell in self._idle.values():
            cell.close()
        self._idle.clear()

    def _keep(self, cell: CellHandle, kind: tuple[int, int]) -> None:
        """Keep a cell for the next program with the same limits, or close it if such a cell is kept already."""
        if kind in self._idle or len(self._idle) >= _MAX_IDLE_CELLS:
            cell.close()
        else:
            self._idle[kind] = cell


def make_group() -> ControlGroup | str:
    """Make a control group for a worker or a session. If this fails, return the reason."""
    parent = delegated_group()
    if isinstance(parent, str):
        return parent
    try:
        return ControlGroup(parent, f"sandbox-{os.getpid()}-{secrets.token_hex(4)}")
    except OSError as problem:
        return f"no group can be made in {parent}: {problem}"
