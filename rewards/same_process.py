"""Why test code could work in the program's own process only: run in another, it would fail right programs."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator, Mapping, Set

from sandbox.assert_code import bound_names

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


def needs_same_process(tree: ast.Module, names: Set[str]) -> Iterator[str]:
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
