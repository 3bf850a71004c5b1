"""Import VeriGRPO's four packages even if a user's file has the same name.

A job starts in the user's folder, which may hold a user's file `rewards.py` or folder `launch/`. Python searches the
user's folder first in a user's script and in Ray's actors, and searches `PYTHONPATH` before installed packages. So
without this finder, VeriGRPO would import the user's file instead of its package.
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
    """Finds the four packages in `ROOT`; later finders handle all other names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the package of this name in `ROOT`; None for other names and for modules inside a package."""
        return PathFinder.find_spec(fullname, [ROOT]) if path is None and fullname in PACKAGES else None


def install() -> None:
    """Put the finder before all other finders; a second call changes nothing.

    Raises:
        ImportError: a user's file is already imported under one of the four names.
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
    """Return True if `folder` holds another `grpo`, which Python would import if it searched `folder` first."""
    files = (os.path.join(folder, "grpo", "__init__.py"), os.path.join(folder, "grpo.py"))
    return any(map(os.path.isfile, files)) and os.path.realpath(folder) != os.path.realpath(ROOT)


def python_command(program: str) -> list[str]:
    """Return the command of a new Python that runs `program` and imports this `grpo` from any working folder."""
    # `-P`: do not search the working folder first. If the install is editable, or if the parent process started in the
    # packages' folder, no folder of the new search path contains the packages. So add `ROOT`.
    search = f"import sys; {ROOT!r} in sys.path or sys.path.insert(0, {ROOT!r})"
    return [sys.executable, "-P", "-c", f"{search}\n{program}"]
