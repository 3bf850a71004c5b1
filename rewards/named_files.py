"""Load files of functions that a config names. Such a file may import the files in its folder."""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# The top-level packages of VeriGRPO. Python finds them before files of a user that have the same names.
PACKAGES = ("grpo", "launch", "rewards", "sandbox")
# Reserved names: an import of such a name never loads a file beside a user's file. For example,
# `from rewards.verdict import ...` always loads this package.
_RESERVED = {*PACKAGES, *sys.stdlib_module_names}


class SiblingFinder(MetaPathFinder):
    """Finds modules beside the files that a config names, if no other finder has a module of that name.

    This finder is last in `sys.meta_path`. So it never hides an installed module, whereas a folder on `sys.path` could.
    """

    def __init__(self) -> None:
        """Start without folders."""
        self.folders: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module of that name beside a named file. A package finds its submodules itself."""
        return importlib.machinery.PathFinder.find_spec(fullname, self.folders) if path is None else None


_finder = SiblingFinder()


def load_file(path: Path, key: str) -> ModuleType:
    """Run a file once, and return it as a module. The file may import the files beside it by name, at any time.

    Args:
        path: file to run.
        key: place in the config that names the file, for messages.

    Raises:
        ValueError: there is no such file, or a file beside it has the name of another module.
        Exception: any exception of the file.
    """
    if not path.is_file():
        raise ValueError(f"{key}: the file {str(path)!r} does not exist (looked from {Path.cwd()})")
    resolved = path.resolve()
    # The module's name depends only on the path. So objects of the file can be pickled, and the file runs only once.
    name = "grpo_verifier_file_" + "".join(c if c.isalnum() else "_" for c in str(resolved))
    if name in sys.modules:
        return sys.modules[name]
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    if str(resolved.parent) not in _finder.folders:
        _finder.folders.append(str(resolved.parent))
    _check_siblings(resolved, key)
    specification = importlib.util.spec_from_file_location(name, resolved)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def names_a_file(use: str) -> Path | None:
    """If `use` names a file without a function, return the file; else return None."""
    for text in (use, f"{use}.py"):
        if text.endswith(".py") and Path(text).is_file():
            return Path(text)
    return None


def without_function(key: str, path: Path) -> str:
    """Return the message for a place in the config that names a file but no function in it.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    functions = public_functions(path)
    there = f"it has {', '.join(functions)}" if functions else "it has no function yet"
    example = functions[0] if len(functions) == 1 else "function"
    return f"{key} names a file but no function in it; write {path!s}:{example} ({there})"


def public_functions(path: Path) -> list[str]:
    """Return the names of a file's functions and classes, without running the file.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    tree = ast.parse(path.read_bytes(), str(path))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def nearest(attribute: str, names: Iterable[str]) -> str:
    """Return a hint with the nearest name; empty if no name is near."""
    near = difflib.get_close_matches(attribute, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_siblings(path: Path, key: str) -> None:
    """Refuse the file if it imports a name for which Python would load another module than the file beside it.

    Raises:
        ValueError: there is such a name. The message names both files.
    """
    waiting, seen = [path], {path}
    while waiting:
        for name in _imported(waiting.pop()):
            beside = _sibling(path.parent, name)
            if beside is None or beside in seen or name in _RESERVED:
                continue
            seen.add(beside)
            waiting.append(beside)
            origin = _origin(name)
            if origin is not None and origin != beside:
                raise ValueError(
                    f"{key}: the file {str(path)!r} imports {name!r}; {str(beside)!r} lies beside it, but Python would "
                    f"load {str(origin)!r}; rename the file beside it, or make the folder a package and name the "
                    "function as 'package.module:function'"
                )


def _imported(path: Path) -> set[str]:
    """Return the first part of each name that a file imports.

    For invalid Python the result is empty; the error is reported when the file is run.
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _sibling(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name / "__init__.py", folder / f"{name}.py"):
        if candidate.is_file():
            return candidate
    return None


def _origin(name: str) -> Path | None:
    """Return the file that `import name` would run, or has run."""
    try:
        specification = importlib.util.find_spec(name)
    except ValueError:  # the imported module has no origin, for example a fake module of a test
        return None
    if specification is None or specification.origin is None:
        return None
    return Path(specification.origin).resolve()
