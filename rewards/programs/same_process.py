"""Find test code that works only in the program's process. In another process it would reject right programs."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator, Mapping, Set
from typing import TypeGuard

from sandbox.assert_code import bound_names

_ANOTHER = "the program runs in a separate process"
_FILES = f"{_ANOTHER}, with other files and another environment"
_PRINTS = f"{_ANOTHER}, and prints and reads there"
_RECORDS = f"{_ANOTHER}, and its warnings and records stay there"
# The key is the beginning of a name. The value says why test code in a separate process cannot use such a name.
_SAME_PROCESS = {
    "unittest.mock": f"it replaces objects of the process that the tests run in, and {_ANOTHER}",
    **dict.fromkeys(["open", "tempfile", "shutil", "sqlite3", "pathlib.Path"], _FILES),
    **dict.fromkeys(["os.mkdir", "os.makedirs", "os.remove", "os.unlink", "os.rmdir", "os.listdir", "os.walk"], _FILES),
    **dict.fromkeys(
        ["os.chdir", "os.environ", "os.path.exists", "os.path.isfile", "os.path.isdir", "os.path.getsize"], _FILES
    ),
    **dict.fromkeys(["contextlib.redirect_stdout", "contextlib.redirect_stderr"], _PRINTS),
    **dict.fromkeys(["sys.stdout", "sys.stderr", "sys.stdin"], _PRINTS),
    **dict.fromkeys(["self.assertLogs", "self.assertNoLogs", "self.assertWarns", "self.assertWarnsRegex"], _RECORDS),
}
_EXPECT_AN_ERROR = ("raises", "assertRaises", "assertRaisesRegex")
# Types of values that can be sent from the program's process to the test code.
_PLAIN_KINDS = (int, float, complex, str, bytes, list, tuple, dict, set)
_PLAIN_ATTRIBUTES = frozenset(name for kind in _PLAIN_KINDS for name in dir(kind))
_PLAIN_CLASSES = frozenset(
    [kind.__name__ for kind in (*_PLAIN_KINDS, bool, object)]
    + ["Number", "Real", "Integral", "Rational", "Complex"]
    + ["Iterable", "Sequence", "Mapping", "Sized", "Collection", "Container", "Hashable"]
)


def needs_same_process(tree: ast.Module, names: Set[str]) -> Iterator[str]:
    """Yield the reasons why the test code works only in the program's process."""
    aliases = _aliases(tree)
    has_open = "open" in bound_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        dotted = _dotted(node, aliases)
        for beginning, why in _SAME_PROCESS.items():
            if (dotted == beginning or dotted.startswith(beginning + ".")) and not (has_open and beginning == "open"):
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
    """The full name of a chain of attributes, with the aliases of imports replaced."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])


def _looks_into_results(function: ast.FunctionDef | ast.Module, names: Set[str]) -> Iterator[str]:
    """Yield the uses of a result that need the object itself. Only plain data can leave the program's process."""
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
        for kind in _expected_errors(node):
            if isinstance(kind, ast.Name) and kind.id in names:
                yield f"it expects the program's own exception `{kind.id}`: {_ANOTHER}, and only built-in ones leave it"
        if isinstance(node, ast.Attribute) and is_result(node.value) and node.attr not in _PLAIN_ATTRIBUTES:
            yield f"it uses `.{node.attr}` of a result: {_ANOTHER}, and only plain data can leave it"
        if _is_call_of(node, "isinstance", "assertIsInstance") and len(node.args) > 1 and is_result(node.args[0]):
            last = [ast.unparse(kind).rpartition(".")[2] for kind in _each(node.args[1])]
            if not _PLAIN_CLASSES & set(last):
                yield f"it expects a result of type {', '.join(last)}: {_ANOTHER}, and only plain data can leave it"


def _is_call_of(node: ast.AST, *functions: str) -> TypeGuard[ast.Call]:
    called = getattr(node, "func", None)
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in functions


def _each(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _expected_errors(node: ast.AST) -> list[ast.expr]:
    """The exception types that a handler or an assertion names."""
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        return _each(node.type)
    return _each(node.args[0]) if _is_call_of(node, *_EXPECT_AN_ERROR) and node.args else []


def _assignments(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """Targets of an assignment, each with its value; the value is None if it does not belong to this target alone."""
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
