"""Code that a config names: `package.module:function` is run with what the config says, so not anything may be named.

A config is code all the same, as it may name any module of the project and of installed packages. But no reward and no
data set is a function of Python's standard library, and with those a config alone would run shell commands.
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
from rewards.raised import describe, is_told

_Loaded = TypeVar("_Loaded")

# Modules that a config may name and that have moved: the name before -> the name today.
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
    """The name that a module has today, for a name that a config may have from an earlier version."""
    return MOVED.get(module, module)


def first_name(function: str) -> str:
    """A `module:function` under the first name of its module.

    Prompts are named after their generator, and the seeds of sampling come from the names of prompts. A module that
    moves must not change what is sampled, neither in a run that is resumed nor in a run that is repeated.
    """
    module, colon, name = function.partition(":")
    return f"{_FIRST_NAMES.get(module, module)}{colon}{name}"


def hidden_by_ours(module: str, *folders: Path) -> str:
    """What to say where a package of VeriGRPO hides a user's file of this name; empty where there is no such file.

    Args:
        module: dotted name of the module that was searched for.
        folders: where the user's file may lie, besides the working folder and the search path.
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
                    f"; {first!r} is a package of VeriGRPO, which hides {file}: rename {renamed}, or, where the "
                    f"configuration takes a file, write {file}:function"
                )
    return ""


def refuse_standard_module(module: str, key: str) -> None:
    """Refuse a module of the standard library, before it is imported.

    Args:
        module: its dotted name.
        key: the place in the config, for the message.

    Raises:
        ValueError: it is one.
    """
    name = module.split(".")[0]
    if name in sys.stdlib_module_names:
        raise ValueError(
            f"{key} names the module {module!r} of Python's standard library, which no config may call; name a "
            "function of your own, which may call it"
        )


def refuse_standard_file(path: Path, key: str) -> None:
    """Refuse a file of the standard library.

    Raises:
        ValueError: it is one.
    """
    file = path.resolve()
    for kind in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(kind)).resolve()
        # Installed packages may lie in a folder of it.
        if library in file.parents and not {"site-packages", "dist-packages"} & set(file.relative_to(library).parts):
            raise ValueError(
                f"{key} names {path}, a file of Python's standard library, which no config may run; name a file of "
                "your own"
            )


def refuse_standard_function(found: Any, key: str) -> None:
    """Refuse a function of the standard library that another module has under a name of its own.

    Raises:
        ValueError: it is one, or such a one with arguments bound.
    """
    while isinstance(found, functools.partial):
        found = found.func
    # Functions, classes and methods know their module; of another object it is its class's.
    refuse_standard_module(str(getattr(found, "__module__", None) or type(found).__module__), key)


def locate(use: str, key: str) -> Callable[..., Any]:
    """The function or class that a config names.

    Args:
        use: `package.module:function` or `path/to/file.py:function`.
        key: the place in the config, for messages.

    Raises:
        ValueError: the file, module or function does not exist (the nearest name is told), belongs to the standard
            library, or fails when it is loaded (with its file and line).
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
    """Run the user's code as it is loaded; what it raises is told with its file and line.

    Args:
        load: loads the code.
        key: the place in the config, for messages.
        folders: where a file of the user may lie that a package of ours hides.

    Raises:
        ValueError: it raised.
    """
    try:
        return load()
    except ImportError as problem:
        hint = hidden_by_ours(problem.name or "", *folders)
        if not hint and isinstance(problem, ModuleNotFoundError):
            hint = "; is its package installed, or its folder on PYTHONPATH?"
        elif "relative import" in str(problem):
            hint = "; a file that is named by its path imports those beside it as `from helpers import ...`"
        raise ValueError(f"{key}: {describe(problem)}{hint}") from problem
    except (Exception, SystemExit) as problem:
        if is_told(problem):
            raise
        raise ValueError(f"{key} could not be loaded: {describe(problem)}") from problem


def _take(module: object, attribute: str, key: str, home: str, hint: str = "") -> Callable[..., Any]:
    found = getattr(module, attribute, None)
    if found is None:
        raise ValueError(f"{key}: {home} has no {attribute!r}{hint or nearest(attribute, dir(module))}")
    return checked(found, key)


def checked(found: object, key: str) -> Callable[..., Any]:
    """What was loaded, where it can be called and does not belong to the standard library.

    Raises:
        ValueError: it cannot be called, or belongs to the standard library.
    """
    if not callable(found):
        raise ValueError(f"{key} is {type(found).__name__}, which cannot be called")
    refuse_standard_function(found, key)
    return found


def source_file(use: str) -> Path:
    """The file of a function that `locate` has loaded."""
    module = use.rpartition(":")[0]
    return Path(module if module.endswith(".py") else importlib.import_module(module_today(module)).__file__ or module)


def absolute_name(use: str) -> str:
    """The same name for a process that works in another folder: a path to a file becomes absolute."""
    module, colon, attribute = use.rpartition(":")
    return f"{Path(module).absolute()}{colon}{attribute}" if module.endswith(".py") else use
