"""Inside the sandbox: a Python session. It runs one piece of code after the other in the same main module.

This module shares a process with foreign code, which may patch or replace it. So nothing here is trusted: the cell
watches the process from outside, and the trusted side takes every result as text.
"""

from __future__ import annotations

import ast
import builtins
import io
import linecache
import os
import sys
import traceback
import types
from typing import NoReturn

from sandbox.inside import program

CODE, CONTROL = 3, 4  # descriptors: the file with the next call's code; the socket to the cell
_MAX_LINE = 64
_MAX_CODE = 1 << 26
_NAME = "<call {}>"  # what tracebacks name as the file of a call's code


def run() -> NoReturn:
    """Answer calls until the cell closes the socket.

    For each call, the cell sends a line with a number that nobody can guess. The answer is the same number, and 0, or 1
    if the code raised.
    """
    # Foreign code may replace these functions in their modules.
    read, pread, write, process_number, leave = os.read, os.pread, os.write, os.getpid, os._exit
    own = process_number()
    for descriptor in (CODE, CONTROL):
        os.set_inheritable(descriptor, False)
    program.seed_generators()
    _open_streams()
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    folder = os.getcwd()
    sys.path.insert(0, folder)  # a call may import modules that an earlier call wrote
    calls = 0
    while True:
        line = read(CONTROL, _MAX_LINE).strip()
        if not line:
            leave(0)
        calls += 1
        failed = _run_call(pread(CODE, _MAX_CODE, 0), _NAME.format(calls), module, folder)
        _flush()
        if process_number() != own:  # the code forked, and this process is a child
            leave(0)
        write(CONTROL, b"%s %d\n" % (line, failed))


def _open_streams() -> None:
    """Let output appear at the end of each line, so that standard output and error keep their order."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        binary = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
        stream = io.TextIOWrapper(
            binary, encoding="utf-8", errors="backslashreplace", newline="\n", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the code may have closed or replaced it
            continue


def _run_call(source: bytes, name: str, module: types.ModuleType, folder: str) -> bool:
    """Execute the code of a call, show the value of its last expression, or the exception; return whether it raised."""
    try:
        text = source.decode("utf-8", "replace")
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        tree = ast.parse(source, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), module.__dict__)
        if last is not None:
            # In this mode an expression's value is given to `sys.displayhook`.
            exec(compile(ast.Interactive([last]), name, "single", dont_inherit=True), module.__dict__)
    except BaseException as problem:
        _show(problem, folder)
        return True
    return False


def _show(problem: BaseException, folder: str) -> None:
    """Print the traceback of an exception, with the frames of the session's code only."""
    _flush()
    try:
        shown = traceback.TracebackException(type(problem), problem, problem.__traceback__, compact=True)
        _keep_own_frames(shown, folder)
        text = "".join(shown.format())
    except BaseException:  # the exception's own functions may raise
        text = f"{type(problem).__name__}\n"
    try:
        sys.stderr.write(text)
    except BaseException:  # the code may have closed or replaced the stream
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _keep_own_frames(shown: traceback.TracebackException, folder: str) -> None:
    """Drop the frames of libraries, in an exception and in those that it came from."""
    waiting, seen = [shown], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        kept = [frame for frame in item.stack if frame.filename.startswith(("<call ", folder + "/"))]
        for frame in kept:
            frame.filename = frame.filename.removeprefix(folder + "/")
        item.stack[:] = kept
        waiting += [other for other in (item.__cause__, item.__context__) if other is not None]
        waiting += item.exceptions or ()
