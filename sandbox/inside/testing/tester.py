"""Run assert-style test code in its own sandbox. The test code calls the program over the call channel.

The test code never shares a process with the program, so the program cannot read expected results, patch the comparison
or end the test early. The tester receives results of the program as plain data of exact types, or as opaque handles.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sandbox import values
from sandbox.assert_code import PROGRAM_MODULE, names_lacking, read_names, without_main_guard
from sandbox.inside.testing import small_pytest
from sandbox.inside.testing.cases import Case, NotPassed, cases
from sandbox.inside.testing.small_pytest import NotSupported, Skipped

_PASSED = {"passed": True, "skipped": False, "reason": ""}
# Exceptions that end a loop silently. If they were raised in test code, they would skip the rest of a loop, and the
# test would pass.
_QUIET = (StopIteration, StopAsyncIteration)
_REPLIES, _REQUESTS = 3, 4  # descriptors, named from the tester's point of view


class Handle:
    """Represents an object in the program's process. It may be an argument of later calls, and equals only itself."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class ProgramFailed(Exception):
    """The program raised an exception that has no counterpart here, or broke the protocol of the channel."""


def remote(name: str, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """Make a function that calls the function `name` of the program."""

    def encoded(item: Any) -> Any:
        try:
            return values.encode(item, _handle_number)
        except values.NotPlainData as problem:
            # `NotPlainData` is a ValueError, which test code might take for an error of the program.
            raise NotSupported(f"test code passes {problem}") from None

    def call(*arguments: Any, **keywords: Any) -> Any:
        reply = ask(
            {
                "function": name,
                "arguments": [encoded(item) for item in arguments],
                "keywords": {key: encoded(item) for key, item in keywords.items()},
            }
        )
        if "ok" in reply:
            return values.decode(reply["ok"], Handle)
        raise _raised(reply)

    call.__name__ = name
    return call


def _raised(reply: dict[str, Any]) -> Exception:
    """Rebuild an exception of the program. If its type is not built in, use the nearest built-in base class."""
    name, message = str(reply.get("exception")), str(reply.get("message"))
    kind = getattr(builtins, str(reply.get("base")), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _QUIET):
        for base in kind.__mro__[: kind.__mro__.index(Exception)]:
            try:
                problem = base(message)
            except TypeError:  # the type cannot be made from a message; try its base class
                continue
            if isinstance(problem, Exception):
                return problem
    return ProgramFailed(f"{name}: {message}")


def _handle_number(item: Any) -> int:
    if isinstance(item, Handle):
        return item.number
    raise values.NotPlainData(f"a {type(item).__name__}, which cannot be sent to the program")


def run(task: bytes) -> NoReturn:
    """Run the test code of `task` (JSON with `code`, `setup`, `entry_point`, `case`) and send the outcome."""
    replies = os.fdopen(_REPLIES, "rb", closefd=False)

    def send(message: dict[str, Any]) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        while rest:
            rest = rest[os.write(_REQUESTS, rest) :]

    def ask(call: dict[str, Any]) -> dict[str, Any]:
        send({"call": call})
        try:
            reply = json.loads(replies.readline())
        except (ValueError, RecursionError):
            reply = None
        if type(reply) is not dict:
            raise ProgramFailed("the reply is not a JSON object")
        return reply

    try:
        outcome = _test(json.loads(task), ask)
    except BaseException as problem:
        skipped = isinstance(problem, Skipped) or type(problem).__name__ == "SkipTest"
        reason = str(problem) if isinstance(problem, NotPassed | Skipped) else f"{type(problem).__name__}: {problem}"
        outcome = {"passed": False, "skipped": skipped, "reason": reason[:300]}
    send(outcome)
    os._exit(0)


def _test(task: dict[str, Any], ask: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Run the test code and the tests that it defines; raise the exception of a failing test."""
    module = types.ModuleType("tests")
    scope = vars(module)
    sys.modules["tests"], sys.modules["pytest"] = module, small_pytest.stand_in()
    sys.modules[PROGRAM_MODULE] = _program_module(ask)
    if "unittest" in task["code"]:
        import unittest

        unittest.main = lambda *arguments, **keywords: None  # type: ignore[assignment]  # the tests are run below
    if task["setup"]:
        exec(compile(task["setup"], "setup.py", "exec"), scope)
    entry, provided = task["entry_point"], {}
    if entry is not None:
        provided = {name: remote(entry, ask) for name in (entry, "candidate")}
        scope.update(provided)
    tree = ast.parse(task["code"])
    for name in names_lacking(tree, scope):
        scope[name] = remote(name, ask)
    exec(compile(task["code"], "tests.py", "exec"), scope)
    if entry is not None and "check" in scope:
        scope["check"](scope[entry])
        return _PASSED
    return _run(cases(scope, provided, read_names(without_main_guard(tree))), task["case"])


def _program_module(ask: Callable[[dict[str, Any]], dict[str, Any]]) -> types.ModuleType:
    """Make the module that test code imports as the program. Every name in the module is a function of the program."""
    module = types.ModuleType(PROGRAM_MODULE)

    def function(name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return remote(name, ask)

    module.__dict__["__getattr__"] = function
    return module


def _run(cases: Sequence[Case], only: str | None) -> dict[str, Any]:
    """Run the chosen test, or all tests. Test code without tests has already been run as a whole."""
    chosen = [case for case in cases if only in (None, case.name)]
    if only is not None and not chosen:
        raise NotPassed(f"the test code does not define {only}")
    skipped = ""
    passed = 0
    for case in chosen:
        try:
            case.run()
        except Skipped as reason:
            skipped = f"{case.name} is skipped: {reason}"
        else:
            passed += 1
    if skipped and not passed:
        raise Skipped(skipped)
    return _PASSED
