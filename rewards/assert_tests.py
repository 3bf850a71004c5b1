"""Test code of a dataset row, before it is run: what it tests, how it is split, and why it could pay the wrong ones."""

from __future__ import annotations

import ast
import collections
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from sandbox import AssertTest
from sandbox.assert_code import bound_names, names_lacking, read_names, without_main_guard

# Columns in which data sets write the beginning of the program: HumanEval's; BigCodeBench's two.
_STUBS = ("prompt", "complete_prompt", "code_prompt")
_ANOTHER = "the program runs in a process of its own"
# What test code cannot do from another process than the program's: by beginnings of names.
_SAME_PROCESS = {
    "unittest.mock": f"it replaces objects of the process that the tests run in, and {_ANOTHER}",
    "open": f"{_ANOTHER}, with files of its own",
    "tempfile": f"{_ANOTHER}, with files of its own",
    "shutil": f"{_ANOTHER}, with files of its own",
    "sqlite3": f"{_ANOTHER}, with files of its own",
    "pathlib.Path": f"{_ANOTHER}, with files of its own",
    **dict.fromkeys(
        (
            f"os.{name}"
            for name in ("mkdir", "makedirs", "remove", "unlink", "rmdir", "listdir", "walk", "chdir", "environ")
        ),
        f"{_ANOTHER}, with files and an environment of its own",
    ),
    **dict.fromkeys(
        (f"os.path.{name}" for name in ("exists", "isfile", "isdir", "getsize")), f"{_ANOTHER}, with files of its own"
    ),
    "contextlib.redirect_stdout": f"{_ANOTHER}, and prints there",
    "contextlib.redirect_stderr": f"{_ANOTHER}, and prints there",
    "sys.stdout": f"{_ANOTHER}, and prints there",
    "sys.stderr": f"{_ANOTHER}, and prints there",
    "sys.stdin": f"{_ANOTHER}, and reads there",
    **dict.fromkeys(
        (f"self.{name}" for name in ("assertLogs", "assertNoLogs", "assertWarns", "assertWarnsRegex")),
        f"{_ANOTHER}, and its warnings and records stay there",
    ),
}
# Attributes of what crosses from the program as a value.
_PLAIN_KINDS = (int, float, complex, str, bytes, list, tuple, dict, set)
_PLAIN_ATTRIBUTES = frozenset(name for kind in _PLAIN_KINDS for name in dir(kind))
_PLAIN_CLASSES = frozenset(
    [kind.__name__ for kind in (*_PLAIN_KINDS, bool, object)]
    + ["Number", "Real", "Integral", "Rational", "Complex"]
    + ["Iterable", "Sequence", "Mapping", "Sized", "Collection", "Container", "Hashable"]
)
_FAILING = ("assert", "fail", "raise", "expect")  # in names of what can fail a test


def readable_prompt(row: Mapping[str, Any]) -> str:
    """The column that begins the program, where it is Python: the stub of HumanEval or BigCodeBench; else nothing."""
    for column in _STUBS:
        text = row.get(column)
        if isinstance(text, str) and text.strip() and as_setup(text):
            return text
    return ""


@functools.lru_cache(maxsize=256)
def as_setup(stub: str) -> str:
    """A stub as code to run: with a body where it lacks one; nothing where it is not Python."""
    for text in (stub, stub + "\n    pass\n"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        # A prompt of one word is Python too, but no beginning of a program.
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
        return text if any(isinstance(node, kinds) for node in tree.body) else ""
    return ""


@functools.lru_cache(maxsize=256)
def tests_of_code(code: str, entry_point: str | None = None, setup: str = "") -> tuple[AssertTest, ...]:
    """The tests that test code holds: one for each method of a `unittest.TestCase` or function `test...`, else one.

    Raises:
        ValueError: it is not Python, could pass without the program, or needs to run in the program's process.
    """
    whole = _parsed(code)
    tree = without_main_guard(whole)
    if not any(_does_something(node) for node in tree.body):
        raise ValueError(f"the test code {_shown(code)} does nothing{_in_guard(whole, tree)}; {_EXPECTED}")
    names = _program_names(tree, entry_point, setup)
    if not names and not (entry_point and "check" in _defined(tree)):
        raise ValueError(f"the test code {_shown(code)} never mentions the program; {_EXPECTED}")
    if not any(_can_fail(node) for node in ast.walk(tree)):
        raise ValueError(f"the test code {_shown(code)} asserts nothing, so that every program would pass it")
    problem = next(_needs_same_process(tree, names), "")
    if problem:
        raise ValueError(f"the test code cannot be run beside the program: {problem}; use a verifier of your own")
    cases = _cases(tree)
    if cases is None or (entry_point is not None and "check" in _defined(tree)):
        return (AssertTest(code, entry_point, setup),)
    if not cases and not any(_calls(node) for node in tree.body):
        raise ValueError(f"nobody calls what the test code {_shown(code)} defines; {_EXPECTED}")
    return tuple(AssertTest(code, entry_point, setup, case) for case in cases) or (
        AssertTest(code, entry_point, setup),
    )


_EXPECTED = (
    "expected assertions at its top level, in `check(candidate)` beside a column entry_point, in methods of a "
    "unittest.TestCase or in functions named test_..."
)


@functools.lru_cache(maxsize=256)
def program_names(test: AssertTest) -> frozenset[str]:
    """Names that test code takes from the program."""
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
    """Whether running a statement calls anything: bodies of functions and classes are not looked into."""
    if isinstance(node, ast.Call):
        return True
    inert = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    return not isinstance(node, inert) and any(_calls(child) for child in ast.iter_child_nodes(node))


def _cases(tree: ast.Module) -> list[str] | None:
    """Names of the tests that a runner would find, in their order; None where only running the code tells them."""
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
                return None  # it may inherit tests
        elif isinstance(node, ast.Import | ast.ImportFrom):
            continue
        elif any(name.lower().startswith("test") for name in bound_names(node)):
            return None  # a test that is assigned, or defined under a condition
    return cases


def _is_fixture(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)


def _needs_same_process(tree: ast.Module, names: Set[str]) -> Iterator[str]:
    """Why test code can work in the program's own process only."""
    aliases = _aliases(tree)
    own_open = "open" in bound_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        dotted = _dotted(node, aliases)
        for beginning, why in _SAME_PROCESS.items():
            if (dotted == beginning or dotted.startswith(beginning + ".")) and not (own_open and beginning == "open"):
                yield f"`{beginning}`: {why}"
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Module):
            yield from _looks_into_results(function, names)


def _aliases(tree: ast.Module) -> dict[str, str]:
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            aliases.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return aliases


def _dotted(node: ast.AST, aliases: Mapping[str, str]) -> str:
    """The full name that a chain of attributes stands for, as far as imports tell."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])


def _looks_into_results(function: ast.FunctionDef | ast.Module, names: Set[str]) -> Iterator[str]:
    """Uses of a result that only the object itself could serve: it stays with the program unless it is plain data."""
    assigned: dict[str, list[bool]] = collections.defaultdict(list)
    for node in ast.walk(function):
        for target, value in _assignments(node):
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    assigned[name.id].append(value is not None and _is_result(value, names))
    results = {name for name, kinds in assigned.items() if all(kinds)}

    def is_result(node: ast.AST) -> bool:
        return _is_result(node, names) or (isinstance(node, ast.Name) and node.id in results)

    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and is_result(node.value) and node.attr not in _PLAIN_ATTRIBUTES:
            yield f"it looks into `.{node.attr}` of a result: {_ANOTHER}, and only plain data crosses"
        if isinstance(node, ast.Call) and len(node.args) > 1 and is_result(node.args[0]):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("isinstance", "assertIsInstance"):
                kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
                last = [ast.unparse(kind).rpartition(".")[2] for kind in kinds]
                if not _PLAIN_CLASSES & set(last):
                    yield f"it wants a result of type {', '.join(last)}: {_ANOTHER}, and only plain data crosses"


def _assignments(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """Targets of a statement that assigns, with the value where that is the target's own."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension | ast.AugAssign):
        yield node.target, None
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, None


def _is_result(node: ast.AST, names: Set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def modules_lacking(row: Mapping[str, Any], preload: Sequence[str]) -> list[str]:
    """Libraries that a BigCodeBench row names (`libs`) and that no program would have."""
    libraries = row.get("libs")
    if isinstance(libraries, str):
        try:
            libraries = ast.literal_eval(libraries)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return []
    if not isinstance(libraries, list | tuple) or "entry_point" not in row:
        return []
    there = {*sys.stdlib_module_names, *(name.partition(".")[0] for name in preload)}
    return sorted({name for library in libraries if (name := str(library).partition(".")[0]) not in there})
