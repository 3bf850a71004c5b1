"""Split the test code of a dataset row into tests, and refuse test code that cannot be used."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Mapping, Sequence, Set
from typing import Any

from rewards.programs.same_process import needs_same_process
from rewards.written_values import value_of
from sandbox import AssertTest, Test
from sandbox.assert_code import PROGRAM_MODULE, bound_names, names_lacking, read_names, without_main_guard

# Columns with the beginning of the program. HumanEval has the first column, BigCodeBench has the other two columns.
_STUBS = ("prompt", "complete_prompt", "code_prompt")
_FAILING = ("assert", "fail", "raise", "expect")  # words in the names of functions that can fail a test


def readable_prompt(row: Mapping[str, Any]) -> str:
    """The beginning of the program, from a column of HumanEval or BigCodeBench; empty if the column is not Python."""
    for column in _STUBS:
        text = row.get(column)
        if isinstance(text, str) and text.strip() and as_setup(text):
            return text
    return ""


@functools.lru_cache(maxsize=256)
def as_setup(stub: str) -> str:
    """The stub as code that runs, with a body if the stub has none; empty if the stub is not Python."""
    for text in (stub, stub + "\n    pass\n"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        # A prompt of one word is Python too, but no program begins like that.
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
        return text if any(isinstance(node, kinds) for node in tree.body) else ""
    return ""


@functools.lru_cache(maxsize=256)
def tests_of_code(code: str, entry_point: str | None = None, setup: str = "") -> tuple[AssertTest, ...]:
    """The tests in test code: each `unittest.TestCase` method or `test...` function; without these, the whole code.

    Raises:
        ValueError: the code is not Python, could pass without the program, or works only in the program's process.
    """
    whole = _parsed(code)
    tree = without_main_guard(whole)
    if not any(_does_something(node) for node in tree.body):
        raise ValueError(f"the test code {_shown(code)} does nothing{_in_guard(whole, tree)}; {_EXPECTED}")
    names = _program_names(tree, entry_point, setup)
    checks = entry_point is not None and "check" in _defined(tree)
    if not names and not checks:
        raise ValueError(f"the test code {_shown(code)} never mentions the program; {_EXPECTED}")
    if not any(_can_fail(node) for node in ast.walk(tree)):
        raise ValueError(f"the test code {_shown(code)} asserts nothing, so that every program would pass it")
    problem = next(needs_same_process(tree, names), "")
    if problem:
        raise ValueError(f"the test code cannot run in another process: {problem}; use a verifier of your own")
    cases = None if checks else _cases(tree)
    if cases == [] and not any(_calls(node) for node in tree.body):
        raise ValueError(f"nobody calls the functions of the test code {_shown(code)}; {_EXPECTED}")
    return tuple(AssertTest(code, entry_point, setup, case) for case in cases or (None,))


_EXPECTED = (
    "expected assertions at its top level, in `check(candidate)` with a column entry_point, in methods of a "
    "unittest.TestCase or in functions named test_..."
)


@functools.lru_cache(maxsize=256)
def program_names(test: AssertTest) -> frozenset[str]:
    """The names that the test code takes from the program."""
    if test.entry_point is not None:
        return frozenset([test.entry_point])
    return frozenset(names_lacking(_parsed(test.code), bound_names(_parsed(test.setup))))


def _program_names(tree: ast.Module, entry_point: str | None, setup: str) -> set[str]:
    lacking = names_lacking(tree, bound_names(_parsed(setup)))
    return lacking | ({entry_point or "candidate", "candidate"} & read_names(tree))


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise ValueError(f"the test code {_shown(code)} is not Python: {problem}") from None


def _shown(code: str) -> str:
    return repr(code if len(code) <= 60 else code[:57] + "...")


def _in_guard(whole: ast.Module, tree: ast.Module) -> str:
    return " but under `if __name__ == ...`, which is not run" if len(whole.body) > len(tree.body) else ""


def _does_something(node: ast.stmt) -> bool:
    return not isinstance(node, ast.Pass) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _defined(tree: ast.Module) -> set[str]:
    """Names of the functions and classes at the top level."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


def _can_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert | ast.Raise):
        return True
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return any(word in name.lower() for word in _FAILING)


def _calls(node: ast.AST) -> bool:
    """Whether running a statement calls a function; bodies of functions and classes do not count."""
    if isinstance(node, ast.Call):
        return True
    inert = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    return not isinstance(node, inert) and any(_calls(child) for child in ast.iter_child_nodes(node))


def _cases(tree: ast.Module) -> list[str] | None:
    """Names of the tests that a test runner would find, in order; None if only a run can show the names."""
    used = read_names(tree)
    if used & {"setattr", "globals", "exec", "type"}:
        return None
    cases: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test") and node.name not in used and not _is_fixture(node):
                cases.append(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            if bases in (["TestCase"], ["IsolatedAsyncioTestCase"]) or (not bases and node.name.startswith("Test")):
                cases += [f"{node.name}.{name}" for name in methods if name.startswith("test")]
            elif bases:
                return None  # the class may inherit tests
        elif isinstance(node, ast.Import | ast.ImportFrom):
            continue
        elif any(name.lower().startswith("test") for name in bound_names(node)):
            return None  # a test is made by an assignment, or is defined under a condition
    return cases


def _is_fixture(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)


@functools.lru_cache(maxsize=256)
def surely_called(test: AssertTest) -> bool:
    """Whether the text of a test shows that it always calls the program."""
    tree = _parsed(test.code)
    names = set(program_names(test)) | {"candidate"}
    if test.case is not None:
        *outer, name = test.case.split(".")
    elif test.entry_point is not None and "check" in _defined(tree):
        outer, name = [], "check"
    else:
        return any(_calls_one_of(names, node) for node in without_main_guard(tree).body)
    body: Sequence[ast.stmt] = tree.body
    for each in (*outer, name):
        body = next((getattr(node, "body", []) for node in body if getattr(node, "name", "") == each), [])
    return any(_calls_one_of(names, node) for node in body)


def _calls_one_of(names: Set[str], node: ast.AST) -> bool:
    """Whether a statement calls one of the functions on every path through it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.ExceptHandler):
        return False
    inner = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else ast.iter_child_nodes(node)
    return any(_calls_one_of(names, child) for child in inner)


def modules_lacking(row: Mapping[str, Any], tests: Sequence[Test], preload: Sequence[str]) -> list[str]:
    """Libraries that a BigCodeBench row (`libs`) or its test code needs, and that are not in `preload`."""
    available = {*sys.stdlib_module_names, *(name.partition(".")[0] for name in preload), PROGRAM_MODULE, "pytest"}
    needed = _libraries(row)
    for test in tests:
        if isinstance(test, AssertTest):
            needed |= _imported(test.setup) | _imported(test.code)
    return sorted(needed - available)


@functools.lru_cache(maxsize=256)
def _imported(code: str) -> frozenset[str]:
    """Modules that code always imports when it runs."""
    body = _parsed(code).body
    plain = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return frozenset(name.partition(".")[0] for name in (*plain, *parts))


def _libraries(row: Mapping[str, Any]) -> set[str]:
    libraries = value_of(row.get("libs"))
    if not isinstance(libraries, list | tuple) or "entry_point" not in row:
        return set()
    return {str(library).partition(".")[0] for library in libraries}
