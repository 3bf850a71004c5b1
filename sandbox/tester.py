"""Inside a sandbox of its own: run assert-style test code, with the program under test behind the call channel.

The test code never shares a process with the program, so the program cannot read what is expected, patch what compares
or end the test early. Results of the program arrive as plain data of exact types, or as opaque handles.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox import values

_REPLIES, _REQUESTS = 3, 4  # descriptors, named from the tester's side


class Handle:
    """An object that stayed in the program's process; it may be passed back and equals nothing but itself."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class ProgramFailed(Exception):
    """The program raised an exception that has no counterpart here."""


def remote(name: str, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """A function that calls `name` in the program."""

    def encoded(item: Any) -> Any:
        return values.encode(item, _handle_number)

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
        kind = getattr(builtins, str(reply.get("exception")), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = ProgramFailed
        raise kind(str(reply.get("message")))

    call.__name__ = name
    return call


def _handle_number(item: Any) -> int:
    if isinstance(item, Handle):
        return item.number
    raise values.NotPlainData(f"test code passes a {type(item).__name__}, which cannot cross to the program")


def names_lacking(code: str, known: dict[str, Any]) -> set[str]:
    """Names that `code` reads at its top level or in functions, and that neither it nor `known` defines."""
    tree = ast.parse(code)
    read: set[str] = set()
    bound = set(known) | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound


def run(task: bytes) -> NoReturn:
    """Run the test code of `task` (JSON with `code`, `setup`, `entry_point`) and send the verdict."""
    replies = os.fdopen(_REPLIES, "rb", closefd=False)

    def send(message: dict[str, Any]) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        while rest:
            rest = rest[os.write(_REQUESTS, rest) :]

    def ask(call: dict[str, Any]) -> dict[str, Any]:
        send({"call": call})
        reply = json.loads(replies.readline())
        if type(reply) is not dict:
            raise values.NotPlainData("a reply that is not an object")
        return reply

    try:
        _test(json.loads(task), ask)
    except BaseException as problem:
        send({"passed": False, "reason": f"{type(problem).__name__}: {problem}"[:300]})
    else:
        send({"passed": True, "reason": ""})
    os._exit(0)


def _test(task: dict[str, Any], ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    scope: dict[str, Any] = {"__name__": "tests"}
    if task["setup"]:
        exec(compile(task["setup"], "setup.py", "exec"), scope)
    entry = task["entry_point"]
    if entry is not None:
        scope[entry] = scope["candidate"] = remote(entry, ask)
    for name in names_lacking(task["code"], scope):
        scope[name] = remote(name, ask)
    exec(compile(task["code"], "tests.py", "exec"), scope)
    if entry is not None and "check" in scope:
        scope["check"](scope[entry])
