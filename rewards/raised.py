"""Describes an exception in one line: its message, and the place in the user's code that raised it."""

from __future__ import annotations

import os
import resource
import site
import sysconfig
import traceback
from pathlib import Path

# The sources of this project.
_PROJECT = tuple(str(Path(__file__).parents[1] / name) for name in ("grpo", "rewards"))
_OURS = tuple(f"{folder}{os.sep}" for folder in _PROJECT)
# Folders that contain no files of the user: the standard library, installed packages, and this project.
_FOLDERS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
    *_PROJECT,
)
_NOT_THE_USERS = tuple({f"{path}{os.sep}" for folder in _FOLDERS for path in (folder, os.path.realpath(folder))})


def describe(problem: BaseException, home: str | None = None) -> str:
    """Return the last line of the traceback, with the place of the error. If memory ran out, also return the limit.

    The place of a syntax error is the faulty text. For other exceptions, the place is the innermost frame in the file
    `home` or in another file of the user, because frames of libraries do not help the user. If there is no such frame,
    the place is the innermost frame of all. A `ValueError` of this project already says what the user did wrong, so
    its place is left out.

    Args:
        problem: the exception.
        home: file of the verifier, if it is known.
    """
    last = traceback.format_exception_only(problem)[-1].strip()
    return f"{last[:300]}{_place(problem, home)}{_limit(problem)}"


def is_from_here(problem: BaseException) -> bool:
    """True for a `ValueError` that this project raised: its message is complete without a place."""
    frames = traceback.extract_tb(problem.__traceback__)
    return isinstance(problem, ValueError) and bool(frames) and frames[-1].filename.startswith(_OURS)


def _place(problem: BaseException, home: str | None) -> str:
    if isinstance(problem, SyntaxError) and problem.filename and not problem.filename.startswith("<"):
        text = f": {problem.text.strip()[:80]}" if problem.text else ""
        return f" ({problem.filename}:{problem.lineno}{text})"
    frames = traceback.extract_tb(problem.__traceback__)
    if not frames:
        return ""
    users = [frame for frame in frames if frame.filename == home or _is_users(frame.filename)]
    if not users and is_from_here(problem):
        return ""
    chosen = (users or list(frames))[-1]
    if chosen.filename.startswith("<"):
        return ""  # the frame belongs to the import system, and the message already names the module
    return f" ({chosen.filename}:{chosen.lineno})"


def _is_users(filename: str) -> bool:
    return not filename.startswith(("<", *_NOT_THE_USERS))


def _limit(problem: BaseException) -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if not isinstance(problem, MemoryError) or limit == resource.RLIM_INFINITY:
        return ""
    return f": this process has {limit >> 20} MiB of address space (the setting memory_mib)"
