"""The four packages of VeriGRPO are found before a user's files of the same names.

A job starts in the user's folder, which may hold a `rewards.py` or a `launch/` of the user. Python searches that folder
first in a script of the user and in the actors of Ray, and it searches `PYTHONPATH` before installed packages: without
this finder VeriGRPO would import the user's file in place of its package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

PACKAGES = ("grpo", "launch", "rewards", "sandbox")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class PackageFinder(MetaPathFinder):
    """Finds the four packages beside this one, and leaves every other name to the finders after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package of that name in `ROOT`; None for other names and for what lies in a package."""
        return PathFinder.find_spec(fullname, [ROOT]) if path is None and fullname in PACKAGES else None


def install() -> None:
    """Put the finder before all others, once in a process.

    Raises:
        ImportError: a file of the user was imported under one of the four names before.
    """
    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and not os.path.abspath(file).startswith(os.path.join(ROOT, name) + os.sep):
            raise ImportError(
                f"{name!r} is a package of VeriGRPO, and {file} was imported under this name before `import grpo`; "
                "rename that file or its folder"
            )
    if not any(isinstance(finder, PackageFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PackageFinder())


def hides_this_package(folder: str) -> bool:
    """True where Python would find another `grpo` in `folder`, if it searched there first."""
    files = (os.path.join(folder, "grpo", "__init__.py"), os.path.join(folder, "grpo.py"))
    return any(map(os.path.isfile, files)) and os.path.realpath(folder) != os.path.realpath(ROOT)


def python_command(program: str) -> list[str]:
    """The command of a new Python that runs `program` and finds this `grpo`, whatever the working folder holds."""
    # `-P`: the working folder is not searched first. Where an installer's hook finds the packages (an editable
    # install), or the parent process was started in their folder, they are in no folder of the search path.
    search = f"import sys; {ROOT!r} in sys.path or sys.path.insert(0, {ROOT!r})"
    return [sys.executable, "-P", "-c", f"{search}\n{program}"]
