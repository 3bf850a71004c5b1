"""Plant faults by chance in functions, and show those that no test notices.

One pytest session runs all tests once, and notes which functions each test enters. Then every fault gets a fork, which
replaces the function's code and runs the tests that enter it, the quickest first, until one fails. Messages, types and
the level of the module get no faults, and processes that tests start see none.

    .venv/bin/python tests/bench/planted_faults.py SEED COUNT SOURCE... -- TESTS...
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import hypothesis
import pytest

SWAPPED = {
    "Lt": "LtE", "LtE": "Lt", "Gt": "GtE", "GtE": "Gt", "Eq": "NotEq", "NotEq": "Eq", "Is": "IsNot", "IsNot": "Is",
    "In": "NotIn", "NotIn": "In", "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "And": "Or", "Or": "And",
    "FloorDiv": "Div", "Mod": "Mult", "Pow": "Mult", "BitOr": "BitAnd", "BitAnd": "BitOr",
    "min": "max", "max": "min", "any": "all", "all": "any",
}  # fmt: skip


def swapped(operator: ast.AST) -> Any:
    return getattr(ast, SWAPPED[type(operator).__name__])()


def faults_of(node: ast.AST) -> Iterator[ast.AST]:
    """Faulty nodes that can take the place of a node."""
    match node:
        case ast.Compare(left, [operator, *others], sides):
            yield ast.Compare(left, [swapped(operator), *others], sides)
        case ast.BinOp(left, operator, right) if type(operator).__name__ in SWAPPED:
            yield ast.BinOp(left, swapped(operator), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(swapped(operator), values)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Break() | ast.Continue() | ast.AugAssign() | ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Call(ast.Name(name), args, keywords) if name in SWAPPED:
            yield ast.Call(ast.Name(SWAPPED[name], ast.Load()), args, keywords)
        case ast.Call(function, [first, second, *rest], keywords) if not isinstance(first, ast.Starred):
            yield ast.Call(function, [second, first, *rest], keywords)


class Fault(ast.NodeTransformer):
    """Plants the fault with this number in a tree; without a number it only counts the faults."""

    def __init__(self, number: int = -1) -> None:
        self.number, self.count, self.shown, self.in_function = number, 0, "", False

    def visit(self, node: ast.AST) -> Any:
        match node:
            case ast.Raise() | ast.JoinedStr() | ast.Expr(ast.Call(ast.Attribute(ast.Name("log" | "logger")))):
                return node
            case ast.AnnAssign():
                node.value = self.visit(node.value) if node.value else None
                return node
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                outside, self.in_function = self.in_function, True
                node.body = [self.visit(statement) for statement in node.body]
                self.in_function = outside
                return node
        for faulty in faults_of(node) if self.in_function else ():
            self.count += 1
            if self.count == self.number + 1:
                self.shown = f"{node.lineno}: {ast.unparse(node)[:80]!r} -> {ast.unparse(faulty)[:80]!r}"  # type: ignore[attr-defined]
                return ast.copy_location(faulty, node)
        return self.generic_visit(node)


def functions_of(code: CodeType) -> dict[str, CodeType]:
    """First line and qualified name -> code, of every function in the code of a module."""
    found = {}
    for inner in [constant for constant in code.co_consts if isinstance(constant, CodeType)]:
        found |= {f"{inner.co_firstlineno} {inner.co_qualname}": inner} | functions_of(inner)
    return found


class Planting:
    """A plugin of pytest that runs the collected tests again and again, in forks."""

    def __init__(self, seed: int, count: int, files: dict[str, str]) -> None:
        self.chance, self.count, self.files = random.Random(seed), count, files
        self.functions: dict[str, list[FunctionType]] = {path: [] for path in files}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for path in self.files:
            importlib.import_module(
                os.path.relpath(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            )
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename in self.files:
                self.functions[each.__code__.co_filename].append(each)
        gc.freeze()
        watched = json.loads(self.forked(session, self.watched))
        counts = {path: Fault() for path in self.files}
        for path, text in self.files.items():
            counts[path].visit(ast.parse(text))
        pool = [(path, number) for path, each in counts.items() for number in range(each.count)]
        chosen, caught = self.chance.sample(pool, min(self.count, len(pool))), 0
        for path, number in chosen:
            fault, text = Fault(number), self.files[path]
            tree = ast.fix_missing_locations(fault.visit(ast.parse(text)))
            before, after = (functions_of(compile(each, path, "exec", dont_inherit=True)) for each in (text, tree))
            codes = {name: code for name, code in after.items() if before.get(name) != code}
            entered = {test for name in codes for test in watched.get(f"{path} {name}", ())}
            tests = [item for item in session.items if item.nodeid in entered]
            tests.sort(key=lambda item: watched["seconds"][item.nodeid])
            said = self.forked(session, functools.partial(self.faulty, path, codes, tests))
            caught += said != "passed"
            if said != "failed":
                what = "SURVIVED" if said else "died or took too long"
                print(f"{what} {os.path.relpath(path)}:{fault.shown} ({len(tests)} tests)", flush=True)
        print(f"{caught} of {len(chosen)} faults caught, of {len(pool)} that can be planted", flush=True)
        return True

    def watched(self, session: pytest.Session) -> str:
        """Run all tests. Return JSON: for each function the tests that enter it, and the seconds of each test."""
        seen: set[CodeType] = set()

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and frame.f_code.co_filename in self.files:
                seen.add(frame.f_code)

        watched: dict[str, Any] = {"seconds": {}}
        for item in session.items:
            begun, failed = time.monotonic(), session.testsfailed
            threading.setprofile(note), sys.setprofile(note)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            sys.setprofile(None), threading.setprofile(None)
            watched["seconds"][item.nodeid] = time.monotonic() - begun
            # A test that fails without a fault cannot show a fault.
            for code in seen if session.testsfailed == failed else ():
                name = f"{code.co_filename} {code.co_firstlineno} {code.co_qualname}"
                watched.setdefault(name, []).append(item.nodeid)
            seen.clear()
        return json.dumps(watched)

    def faulty(self, path: str, codes: dict[str, CodeType], tests: list[pytest.Item], session: pytest.Session) -> str:
        """Replace functions of a file, and run tests until one fails."""
        for function in self.functions[path]:
            code = codes.get(f"{function.__code__.co_firstlineno} {function.__code__.co_qualname}")
            if code is not None and code.co_freevars == function.__code__.co_freevars:
                function.__code__ = code
        for item in tests:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                return "failed"
        return "passed"

    def forked(self, session: pytest.Session, work: Callable[[pytest.Session], str]) -> str:
        """What `work` returns in a fork of this process; empty if the fork died or a test took too long."""
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                session.config.pluginmanager.unregister(name="terminalreporter")
                with os.fdopen(writing, "w") as out:
                    out.write(work(session))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said


if __name__ == "__main__":
    at = sys.argv.index("--")
    paths = [Path(name).absolute() for name in sys.argv[3:at]]
    sources = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    quick = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("planted", phases=quick, database=None, deadline=None)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=no", "--hypothesis-profile=planted"]
    # A thread can end a test that hangs in one long computation.
    options += ["--timeout=60", "--timeout-method=thread"]
    plugin = Planting(int(sys.argv[1]), int(sys.argv[2]), {str(file): file.read_text() for file in sources})
    sys.path[0] = os.getcwd()
    sys.exit(pytest.main([*options, *sys.argv[at + 1 :]], plugins=[plugin]))
