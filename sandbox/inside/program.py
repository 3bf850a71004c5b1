"""Inside the sandbox: run a Python program as an interpreter would, or answer calls to its functions.

This module shares a process with foreign code, which may patch or replace it. So nothing here is trusted: the trusted
side checks all data that comes from here.
"""

from __future__ import annotations

import _thread
import atexit
import builtins
import io
import json
import linecache
import os
import random
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

from sandbox import values

_FILE = "main.py"
_REQUESTS, _REPLIES = 3, 4  # descriptors of the call channel
_MESSAGE_LENGTH = 500  # characters of an exception's text that are sent


def open_standard_streams(stdin: int = 0, stdout: int = 1, stderr: int = 2) -> None:
    """Open the standard text streams on three descriptors.

    The worker calls this once. An unused stream has not read anything, so its descriptor may still be replaced.
    """
    binary_in = io.BufferedReader(io.FileIO(stdin, "r", closefd=False), 1 << 16)
    binary_out = io.BufferedWriter(io.FileIO(stdout, "w", closefd=False), 1 << 16)
    binary_error = io.BufferedWriter(io.FileIO(stderr, "w", closefd=False), 1 << 13)
    sys.stdin = io.TextIOWrapper(binary_in, encoding="utf-8", errors="surrogateescape")
    sys.stdout = io.TextIOWrapper(binary_out, encoding="utf-8", errors="surrogateescape", newline="\n")
    sys.stderr = io.TextIOWrapper(
        binary_error, encoding="utf-8", errors="backslashreplace", newline="\n", line_buffering=True
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def compiled(source: bytes) -> types.CodeType:
    """Compile the program. If this fails, raise the error that the program's author would see."""
    return compile(source, _FILE, "exec", dont_inherit=True)


def main_module(source: bytes, name: str = "__main__") -> types.ModuleType:
    """Make the module in which a program is executed, and register it for imports and tracebacks."""
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__file__"] = _FILE
    sys.modules[name] = module
    text = source.decode("utf-8", "replace")
    linecache.cache[_FILE] = (len(text), None, text.splitlines(True), _FILE)
    return module


def mentions_generators(source: bytes) -> bool:
    """Whether a program may use random numbers."""
    return b"random" in source


def seed_generators() -> None:
    """Seed the random generators again, because all programs inherit the same states from the worker."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def run(source: bytes, answer_calls: bool = False) -> NoReturn:
    """Execute `source` as the main module, answer calls if `answer_calls` is set, and exit as the interpreter would."""
    if mentions_generators(source):
        seed_generators()
    module = main_module(source, "solution" if answer_calls else "__main__")
    execute(source, None, module, answer_calls)


def execute(
    source: bytes, code_object: types.CodeType | None, module: types.ModuleType, answer_calls: bool = False
) -> NoReturn:
    """Execute a program in its module, and exit. The program may be compiled already."""
    os._exit(executed(source, code_object, module, answer_calls))


def executed(source: bytes, code_object: types.CodeType | None, module: types.ModuleType, answer_calls: bool) -> int:
    """Execute the program and return its exit code."""
    code = 0
    try:
        exec(code_object or compiled(source), module.__dict__)
        if answer_calls:
            _answer_calls(module)
    except SystemExit as request:
        code = _exit_code(request)
    except BaseException as problem:
        code = 1
        _print_exception(problem)
    return _finished(code)


def _finished(code: int) -> int:
    """Wait for threads, run exit functions and flush the streams; return the exit code."""
    try:
        # Both calls copy many pages of the parent, even if there is nothing to do. So make them only if needed.
        if _thread._count() or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        if atexit._ncallbacks():
            atexit._run_exitfuncs()
    except BaseException as problem:
        _print_exception(problem)
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 120  # the interpreter exits with this code if flushing fails
    return code


def _exit_code(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF
    try:
        print(request.code, file=sys.stderr)
    except BaseException as problem:
        _print_exception(problem)
    return 1


def _print_exception(problem: BaseException) -> None:
    try:
        frames = problem.__traceback__.tb_next if problem.__traceback__ else None  # without this file's own frame
        traceback.print_exception(type(problem), problem, frames)
    except BaseException:  # the program may have broken sys.stderr; the exit code still shows the failure
        return


def _answer_calls(module: types.ModuleType) -> None:
    """Answer one call per line until the other side closes the channel."""
    requests = os.fdopen(_REQUESTS, "rb", closefd=False)
    kept: list[Any] = []

    def keep(item: Any) -> int:
        kept.append(item)
        return len(kept) - 1

    for line in requests:
        request = json.loads(line)
        try:
            function = _find(module, request["function"])
            arguments = [values.decode(item, kept.__getitem__) for item in request["arguments"]]
            keywords = {name: values.decode(item, kept.__getitem__) for name, item in request["keywords"].items()}
            result = function(*arguments, **keywords)
            reply = {"ok": values.encode(result, keep if request["handles"] else None)}
        except SystemExit:
            raise
        except BaseException as problem:
            kind = type(problem)
            base = next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
            reply = {"exception": kind.__name__, "base": base, "message": str(problem)[:_MESSAGE_LENGTH]}
        _send(json.dumps(reply).encode())


def _find(module: types.ModuleType, name: str) -> Any:
    if name in module.__dict__:
        return module.__dict__[name]
    solution = module.__dict__.get("Solution")
    if solution is not None:
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _send(message: bytes) -> None:
    rest = memoryview(message + b"\n")
    while rest:
        rest = rest[os.write(_REPLIES, rest) :]
