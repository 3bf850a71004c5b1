"""Choose the host's files that programs may read: compilers, interpreters and libraries, but no user's files.

Parts of `/usr` stay hidden: many images keep a project in `/usr/src/app`, and `/usr/share` and `/usr/local/share` may
hold any data. Programs see the interpreter's executable and libraries. They see third-party modules only if
these are preloaded, each as a separate path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_LIBRARIES = ("lib", "lib32", "lib64", "libx32")
_PROGRAMS = ("bin", "sbin", "libexec", "include", *_LIBRARIES)
# Data of compilers, interpreters, locales, time zones and terminals.
_SHARED_DATA = ("gcc", "i18n", "locale", "nodejs", "node_modules", "perl", "perl5", "terminfo", "zoneinfo")
# Programs see only those files of /etc that the loader and the clock need.
_SYSTEM = (
    *(f"/usr/{name}" for name in _PROGRAMS),
    *(f"/usr/local/{name}" for name in _PROGRAMS),
    *(f"/usr/share/{name}" for name in _SHARED_DATA),
    *(f"/{name}" for name in ("bin", "sbin", *_LIBRARIES)),
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)
_PREFIX_FOLDERS = ("lib", "lib64", "share/terminfo", "share/zoneinfo", "ssl")
# The links are resolved at import, because a private root later hides them.
_INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
_STANDARD_LIBRARY = os.path.realpath(os.path.dirname(os.__file__))
_THIRD_PARTY = ("site-packages", "dist-packages")


def interpreter_program() -> str:
    """The interpreter's own executable, not a virtual environment's link to it."""
    return _INTERPRETER


def standard_library() -> str:
    """The directory of the standard library."""
    return _STANDARD_LIBRARY


def interpreter_files() -> list[str]:
    """Files that show whether a user can run the interpreter: its program and a module of the standard library."""
    return [interpreter_program(), os.path.join(standard_library(), "os.py")]


def shown_paths() -> list[str]:
    """Existing files and directories that programs may read, except the `hidden_paths` below them."""
    prefix = os.path.realpath(sys.base_prefix)
    wanted = [*_SYSTEM, interpreter_program(), *(os.path.join(prefix, name) for name in _PREFIX_FOLDERS)]
    wanted.append(standard_library())
    shown: list[str] = []
    for path in wanted:
        if os.path.lexists(path) and not any(_beneath(path, other) for other in shown):
            shown.append(path)
    return shown


def hidden_paths(shown: Sequence[str]) -> list[str]:
    """Directories of third-party modules below `shown`."""
    libraries = {os.path.realpath(path) for path in shown if os.path.basename(path) in _LIBRARIES}
    parents = {str(path) for library in libraries for path in Path(library).glob("python*")} | {standard_library()}
    candidates = [os.path.join(parent, name) for parent in sorted(parents) for name in _THIRD_PARTY]
    return [path for path in candidates if os.path.isdir(path) and not os.path.islink(path)]


def readable_by_programs(path: str | os.PathLike[str]) -> bool:
    """Whether a program could read `path` on the host, if the isolation level is `CONFINED` or above."""
    real = os.path.realpath(path)
    shown = shown_paths()
    if not any(_beneath(real, os.path.realpath(other)) for other in shown):
        return False
    return not any(_beneath(real, os.path.realpath(other)) for other in hidden_paths(shown))


def _beneath(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
