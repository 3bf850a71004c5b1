"""Files of functions that a config names: running them, what is in them, and the files beside them that they import."""

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
# These names are never those of a file beside a user's file: `from rewards.verdict import ...` means this package.
_RESERVED = {*PACKAGES, *sys.stdlib_module_names}


class SiblingFinder(MetaPathFinder):
    """Finds the modules that lie beside the files that a config names, where nobody else has a module of that name.

    It stands last in `sys.meta_path`: so it hides no installed module from anybody, unlike a folder on `sys.path`.
    """

    def __init__(self) -> None:
        """Look nowhere yet."""
        self.folders: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of that name beside some named file; parts of a package are found by the package."""
        return importlib.machinery.PathFinder.find_spec(fullname, self.folders) if path is None else None


_finder = SiblingFinder()


def load_file(path: Path, key: str) -> ModuleType:
    """Run a file, once; it may import the files beside it by their names, now and later.

    Args:
        path: the file.
        key: the place in the config that names it, for messages.

    Raises:
        ValueError: there is no such file, or a file beside it has the name of another module.
        Exception: whatever the file raises.
    """
    if not path.is_file():
        raise ValueError(f"{key}: the file {str(path)!r} does not exist (looked from {Path.cwd()})")
    resolved = path.resolve()
    # One name per path, so that objects of the file can be pickled and the file is run once.
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
    """The file that a `use` without a function names."""
    for text in (use, f"{use}.py"):
        if text.endswith(".py") and Path(text).is_file():
            return Path(text)
    return None


def without_function(key: str, path: Path) -> str:
    """What to say of a place in the config that names a file and no function in it.

    Raises:
        SyntaxError: the file is no Python.
    """
    functions = public_functions(path)
    there = f"it has {', '.join(functions)}" if functions else "it has no function yet"
    example = functions[0] if len(functions) == 1 else "function"
    return f"{key} names a file but no function in it; write {path!s}:{example} ({there})"


def public_functions(path: Path) -> list[str]:
    """Names of a file's functions and classes, read without running it.

    Raises:
        SyntaxError: the file is no Python.
    """
    tree = ast.parse(path.read_bytes(), str(path))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def nearest(attribute: str, names: Iterable[str]) -> str:
    """A hint at the name that was probably meant; empty when there is none."""
    near = difflib.get_close_matches(attribute, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_siblings(path: Path, key: str) -> None:
    """Refuse names that Python would take for another module than the file beside this one.

    Raises:
        ValueError: such a name, with both files.
    """
    waiting, seen = [path], {path}
    while waiting:
        for name in _imported(waiting.pop()):
            beside = _sibling(path.parent, name)
            if beside is None or beside in seen or name in _RESERVED:
                continue
            seen.add(beside)
            waiting.append(beside)
            found = _origin(name)
            if found is not None and found != beside:
                raise ValueError(
                    f"{key}: the file {str(path)!r} imports {name!r}, which is both {str(beside)!r} beside it and "
                    f"{str(found)!r}, and Python takes the latter; rename the file beside it, or make the folder a "
                    "package and name the function as 'package.module:function'"
                )


def _imported(path: Path) -> set[str]:
    """First parts of the names that a file imports, anywhere in it; none when it is no Python: running it says so."""
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
    """The file that `import name` would run, or has run."""
    try:
        specification = importlib.util.find_spec(name)
    except ValueError:  # it is imported and does not say where from, such as a stand-in of a test
        return None
    if specification is None or specification.origin is None:
        return None
    return Path(specification.origin).resolve()
