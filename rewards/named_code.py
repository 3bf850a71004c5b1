"""Code that a config names: `package.module:function` is run with what the config says, so not anything may be named.

A config is code all the same, as it may name any module of the project and of installed packages. But no reward and no
data set is a function of Python's standard library, and with those a config alone would run shell commands.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from typing import Any


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
