"""Find the names that test code takes from the program. Nothing here runs the code; it is only parsed."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

# Test code imports the program by this name, as pytest-style data sets do.
PROGRAM_MODULE = "solution"


def program_imports(tree: ast.AST) -> set[str]:
    """Names that the code imports from the program."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == PROGRAM_MODULE]
    return {alias.name for node in imports for alias in node.names if alias.name != "*"}


def bound_names(tree: ast.AST) -> set[str]:
    """Names that a piece of code defines, imports or assigns, anywhere in it."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
    return bound


def read_names(tree: ast.AST) -> set[str]:
    """Names that a piece of code reads, anywhere in it."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def without_main_guard(tree: ast.Module) -> ast.Module:
    """The code as an import runs it: without the statements under `if __name__ == "__main__":`."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in read_names(node.test))]
    return ast.Module(body, tree.type_ignores)


def names_lacking(tree: ast.AST, known: Iterable[str]) -> set[str]:
    """Names that the code imports from the program, or reads but does not get from its own text, `known` or Python."""
    return (read_names(tree) - bound_names(tree) - set(known) - set(dir(builtins))) | program_imports(tree)
