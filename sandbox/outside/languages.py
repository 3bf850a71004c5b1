"""Prepare programs of each language so that a cell can run them."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from sandbox.outside.cell_handle import limits_message, sealed_memory
from sandbox.outside.worker import Worker
from sandbox.types import MEBIBYTE, ExecutionResult, Isolation, Language, Limits, ProgramStatus

_PATH = "/usr/local/bin:/usr/bin:/bin"  # folders that the private root shows on every machine
_ENVIRONMENT = {"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
COMPILE_LIMITS = Limits(
    wall_s=30.0,
    memory_bytes=2048 * MEBIBYTE,
    processes=32,
    output_bytes=64 * MEBIBYTE,  # the size of the executable
    disk_bytes=256 * MEBIBYTE,
)
# -pipe keeps intermediate files out of the scratch directory. The executable is printed to standard output.
_COMPILE_CPP = "g++ -O2 -std=c++20 -pipe -o main main.cpp && exec cat main"
_CACHED_BYTES = 256 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Runnable:
    """A program ready to run: fields for the request to a cell, and the content, which is sent as a descriptor."""

    request: dict[str, Any]
    content: bytes


@dataclass(frozen=True, slots=True)
class NotRunnable(Exception):
    """The program cannot be run: it does not compile, or this machine has no compiler or interpreter for it."""

    status: ProgramStatus
    reason: str
    result: ExecutionResult | None = None

    def as_result(self, isolation: Isolation) -> ExecutionResult:
        """The failure in the form of a run's result."""
        run = self.result or ExecutionResult(self.status, None, b"", b"", 0.0, 0.0, 0, isolation)
        return replace(run, status=self.status, exit_code=None, stdout=b"", isolation=isolation, reason=self.reason)


def find_tool(name: str) -> str | None:
    """Absolute path of a compiler or interpreter that a program can see, or None."""
    return shutil.which(name, path=_PATH)


class Compiler:
    """Prepares programs, and compiles them if the language needs it. Executables are cached by the source's content.

    Many threads may use a compiler. If two threads prepare the same source at the same time, both may compile it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached_bytes = 0

    def prepare(
        self, worker: Worker, source: bytes, language: Language, compile_limits: Limits | None = None
    ) -> Runnable:
        """Make `source` runnable. The limits of the compiler are `compile_limits`, by default `COMPILE_LIMITS`.

        Raises:
            NotRunnable: the program does not compile, or there is no compiler.
            WorkerLost: the worker died.
        """
        if language is Language.PYTHON:
            return Runnable({"kind": "run"}, source)
        if not worker.allows_executables:
            reason = f"{language.value} needs process and mount namespaces, which this machine does not grant"
            raise NotRunnable(ProgramStatus.NO_COMPILER, reason)
        if language is Language.BASH:
            return Runnable(_execute([_need("bash"), "main.sh"], "main.sh"), source)
        if language is Language.JAVASCRIPT:
            # node reserves gigabytes of address space that it never touches.
            return Runnable(_execute([_need("node"), "main.js"], "main.js", address_space=False), source)
        return Runnable(_execute(["./main"], "main"), self._compiled(worker, source, compile_limits))

    def _compiled(self, worker: Worker, source: bytes, compile_limits: Limits | None) -> bytes:
        compiler = _need("g++")
        key = hashlib.sha256(f"{compiler} {os.stat(compiler).st_mtime_ns} {_COMPILE_CPP}\n".encode() + source).digest()
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        limits = compile_limits or COMPILE_LIMITS
        program = sealed_memory("source", source)
        try:
            with worker.open_cell(limits) as cell:
                request = _execute(["/bin/sh", "-c", _COMPILE_CPP], "main.cpp")
                cell.begin(request | {"limits": limits_message(limits)}, program)
                result = cell.finish()
        finally:
            os.close(program)
        if result.status is not ProgramStatus.OK:
            reason = result.stderr.decode("utf-8", "replace").strip()[:500] or f"the compiler: {result.status.value}"
            raise NotRunnable(ProgramStatus.COMPILE_ERROR, reason, result)
        with self._lock:
            self._cache[key] = result.stdout
            self._cached_bytes += len(result.stdout)
            while self._cached_bytes > _CACHED_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= len(dropped)
        return result.stdout


def _need(name: str) -> str:
    path = find_tool(name)
    if path is None:
        raise NotRunnable(ProgramStatus.NO_COMPILER, f"{name} is not installed in any of {_PATH}")
    return path


def _execute(arguments: list[str], program_name: str, address_space: bool = True) -> dict[str, Any]:
    return {
        "kind": "execute",
        "arguments": arguments,
        "program_name": program_name,
        "environment": _ENVIRONMENT,
        "address_space": address_space,
    }
