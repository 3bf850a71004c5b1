"""Load code that a config names as `package.module:function`. The standard library is not allowed.

A config may name any module of the project and of installed packages, so a config can run code. If a config could also
name functions of Python's standard library, a config alone could run shell commands. No reward and no data set needs
such a function.
"""

from __future__ import annotations

import functools
import importlib
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rewards.named_files import PACKAGES, load_file, names_a_file, nearest, without_function
from rewards.raised import describe, is_from_here

_Loaded = TypeVar("_Loaded")

# Modules that have moved. An old config may still name them. For each earlier name: the present name.
MOVED = {
    "grpo.arithmetic": "grpo.data.arithmetic",
    "grpo.expressions": "grpo.data.expressions",
    "rewards.choice": "rewards.verifiers.choice",
    "rewards.code": "rewards.verifiers.code",
    "rewards.exact": "rewards.verifiers.exact",
    "rewards.format": "rewards.verifiers.format",
    "rewards.gym": "rewards.verifiers.gym",
    "rewards.length": "rewards.verifiers.length",
    "rewards.math": "rewards.verifiers.math",
    "rewards.math_verify_grader": "rewards.verifiers.math_verify",
    "rewards.numeric": "rewards.verifiers.numeric",
    "rewards.ordered_list": "rewards.verifiers.ordered_list",
    "rewards.repetition": "rewards.verifiers.repetition",
}
_ROOT = Path(__file__).resolve().parents[1]
_FIRST_NAMES = {today: before for before, today in MOVED.items()}


def module_today(module: str) -> str:
    """Return the present name of a module. An old config may contain an earlier name."""
    return MOVED.get(module, module)


def first_name(function: str) -> str:
    """Return the name `module:function` with the first name that its module had.

    The names of prompts contain the name of their generator, and the seeds of sampling depend on the names of prompts.
    So if a module has moved, this first name is used, and a resumed or repeated run samples the same completions.
    """
    module, colon, name = function.partition(":")
    return f"{_FIRST_NAMES.get(module, module)}{colon}{name}"


def hidden_by_ours(module: str, *folders: Path) -> str:
    """Return a hint if a package of VeriGRPO hides a user's file of this name; empty if there is no such file.

    Args:
        module: dotted name of the missing module.
        folders: folders that may contain the user's file, in addition to the working folder and the search path.
    """
    first, *rest = module.split(".")
    if first not in PACKAGES:
        return ""
    for folder in dict.fromkeys([*folders, Path.cwd(), *map(Path, sys.path)]):
        place = folder.joinpath(first, *rest)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and _ROOT / first not in file.resolve().parents:
                renamed = file if file.parent == folder else folder / first
                return (
                    f"; {first!r} is a package of VeriGRPO, which hides {file}: rename {renamed}, or, if the "
                    f"configuration takes a file here, write {file}:function"
                )
    return ""


def refuse_standard_module(module: str, key: str) -> None:
    """Refuse a module of the standard library, before its import.

    Args:
        module: dotted name of the module.
        key: place in the config, for the message.

    Raises:
        ValueError: the module belongs to the standard library.
    """
    name = module.split(".")[0]
    if name in sys.stdlib_module_names:
        raise ValueError(
            f"{key} names the module {module!r} of Python's standard library, which no config may call; name "
            "a function of your project, which may call it"
        )


def refuse_standard_file(path: Path, key: str) -> None:
    """Refuse a file of the standard library.

    Raises:
        ValueError: the file belongs to the standard library.
    """
    file = path.resolve()
    for kind in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(kind)).resolve()
        # A folder of the standard library may contain installed packages, which are allowed.
        if library in file.parents and not {"site-packages", "dist-packages"} & set(file.relative_to(library).parts):
            raise ValueError(
                f"{key} names {path}, a file of Python's standard library, which no config may run; name a file of "
                "your project"
            )


def refuse_standard_function(function: Any, key: str) -> None:
    """Refuse a function of the standard library that another module has imported.

    Raises:
        ValueError: the function is from the standard library, possibly with bound arguments.
    """
    while isinstance(function, functools.partial):
        function = function.func
    # Functions, classes and methods have a module. For other objects, use the module of their class.
    refuse_standard_module(str(getattr(function, "__module__", None) or type(function).__module__), key)


def locate(use: str, key: str) -> Callable[..., Any]:
    """Load the function or class that a config names.

    Args:
        use: name in the form `package.module:function` or `path/to/file.py:function`.
        key: place in the config, for messages.

    Raises:
        ValueError: the file, module or function does not exist (the message has the nearest name), belongs to the
            standard library, or raises an exception while it is loaded (the message has the file and line).
    """
    module, colon, attribute = use.rpartition(":")
    if colon and module.endswith(".py") and attribute:
        path = Path(module)
        refuse_standard_file(path, key)
        return _take(loaded(lambda: load_file(path, key), key, path.parent), attribute, key, module)
    if file := names_a_file(use.removesuffix(":")):
        raise ValueError(loaded(lambda: without_function(key, file), key))
    if not (module and attribute):
        raise ValueError(f"{key} names no function; write package.module:function or path/to/file.py:function")
    module = module_today(module)
    refuse_standard_module(module, key)
    hint = hidden_by_ours(module)
    return _take(loaded(lambda: importlib.import_module(module), key), attribute, key, module, hint)


def loaded(load: Callable[[], _Loaded], key: str, *folders: Path) -> _Loaded:
    """Load the user's code. If this code raises an exception, report the exception with its file and line.

    Args:
        load: function that loads the code.
        key: place in the config, for messages.
        folders: folders that are searched for a user's file that a package of VeriGRPO hides.

    Raises:
        ValueError: the code raised an exception.
    """
    try:
        return load()
    except ImportError as problem:
        hint = hidden_by_ours(problem.name or "", *folders)
        if not hint and isinstance(problem, ModuleNotFoundError):
            hint = "; is its package installed, or its folder on PYTHONPATH?"
        elif "relative import" in str(problem):
            hint = "; a file that a config names by its path imports the files beside it as `from helpers import ...`"
        raise ValueError(f"{key}: {describe(problem)}{hint}") from problem
    except (Exception, SystemExit) as problem:
        if is_from_here(problem):
            raise
        raise ValueError(f"{key} could not be loaded: {describe(problem)}") from problem


def _take(module: object, attribute: str, key: str, home: str, hint: str = "") -> Callable[..., Any]:
    value = getattr(module, attribute, None)
    if value is None:
        raise ValueError(f"{key}: {home} has no {attribute!r}{hint or nearest(attribute, dir(module))}")
    return checked(value, key)


def checked(value: object, key: str) -> Callable[..., Any]:
    """Check that a loaded value is callable and not from the standard library, and return it.

    Raises:
        ValueError: the value is not callable, or belongs to the standard library.
    """
    if not callable(value):
        raise ValueError(f"{key} is {type(value).__name__}, which cannot be called; name a function or a class")
    refuse_standard_function(value, key)
    return value


def source_file(use: str) -> Path:
    """Return the file of a function that `locate` has loaded."""
    module = use.rpartition(":")[0]
    return Path(module if module.endswith(".py") else importlib.import_module(module_today(module)).__file__ or module)


def absolute_name(use: str) -> str:
    """Return a name that also works in a process with another working folder: a file's path becomes absolute."""
    module, colon, attribute = use.rpartition(":")
    return f"{Path(module).absolute()}{colon}{attribute}" if module.endswith(".py") else use
