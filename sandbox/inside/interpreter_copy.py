"""Copy the interpreter to a place that every user may read, if only root can read it and mounts are impossible.

Programs never run as root. Python may lie in root's home (pyenv, uv and conda put it there), and there may be no mount
namespaces (the default of Docker and Kubernetes). Then the parts of Python that programs need, and the preloaded
third-party modules, are copied once to a directory that root owns and everybody can enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence

from sandbox import visible
from sandbox.inside.isolation.filesystem import SitePackage

_PLACES = ("/var/cache/verigrpo", "/var/tmp/verigrpo")
_NOBODY = 65_534
# Parts of the standard library that no program needs. These parts are half of the library's size.
_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "ensurepip")


def readable(paths: Iterable[str], uid: int = _NOBODY) -> bool:
    """Whether a user without privileges can read, or enter, all of `paths`. Only root may call this."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            code = 0 if all(os.access(path, os.R_OK) for path in paths) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def copied_interpreter(temporary: str) -> str:
    """Copy this interpreter, unless a copy exists already; returns the path of the copy's executable.

    Args:
        temporary: directory for the copy if the machine's cache directories are not usable.

    Raises:
        OSError: there is no directory with enough free space that belongs to root alone and that everybody can enter.
    """
    executable, library = visible.interpreter_program(), visible.standard_library()
    state = os.stat(executable)
    name = _name("python", executable, str(state.st_mtime_ns), str(state.st_size))

    def fill(place: str) -> None:
        os.mkdir(os.path.join(place, "bin"))
        shutil.copy2(executable, os.path.join(place, "bin"))
        target = os.path.join(place, "lib", os.path.basename(library))
        shutil.copytree(library, target, ignore=_left_out, symlinks=True)
        for entry in os.scandir(os.path.dirname(library)):
            if ".so" in entry.name and entry.is_file():
                shutil.copy2(entry.path, os.path.join(place, "lib"))

    return os.path.join(_cached(name, fill, temporary), "bin", os.path.basename(executable))


def _left_out(directory: str, names: Sequence[str]) -> set[str]:
    # Tests and the files for linking extension modules take tens of megabytes.
    return {name for name in names if name in _LEFT_OUT or name.startswith("config-")}


def readable_packages(packages: Sequence[SitePackage], temporary: str) -> list[SitePackage]:
    """Replace packages that only root can read with copies.

    Raises:
        OSError: a copy cannot be made.
    """
    result = []
    for package in packages:
        if readable([package.path]):
            result.append(package)
            continue
        parent = os.path.dirname(package.path)
        # Packages of one directory are copied together, because modules find their shared libraries by relative paths.
        name = _name("modules", parent, str(os.stat(parent).st_mtime_ns), *sorted(item.path for item in packages))

        def fill(place: str, parent: str = parent) -> None:
            for item in packages:
                if os.path.dirname(item.path) == parent:
                    target = os.path.join(place, item.name)
                    if os.path.isdir(item.path):
                        shutil.copytree(item.path, target, symlinks=True, ignore=shutil.ignore_patterns("tests"))
                    else:
                        shutil.copy2(item.path, target)

        result.append(SitePackage(os.path.join(_cached(name, fill, temporary), package.name)))
    return result


def _name(kind: str, *parts: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{kind}{version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _cached(name: str, fill: Callable[[str], None], temporary: str) -> str:
    """Return a directory of the cache. If it is missing, call `fill`; several workers may do so at the same time."""
    problems: list[str] = []
    for place in (*_PLACES, os.path.join(temporary, "verigrpo-interpreter")):
        final = os.path.join(place, name)
        try:
            _make_place(place)
            if not os.path.isdir(final):
                made = tempfile.mkdtemp(prefix=".new-", dir=place)
                try:
                    fill(made)
                    _open_to_all(made)
                    os.rename(made, final)
                except OSError:
                    shutil.rmtree(made, ignore_errors=True)
                    if not os.path.isdir(final):
                        raise
            if readable([final, os.path.join(final, os.listdir(final)[0])]):
                return final
            problems.append(f"{place}: other users cannot enter it")
        except OSError as problem:
            problems.append(f"{place}: {problem}")
    raise OSError("; ".join(problems))


def _make_place(place: str) -> None:
    """Make a directory that only root can change: root executes the files in it."""
    try:
        os.mkdir(place, 0o755)
        os.chmod(place, 0o755)
    except FileExistsError:
        pass
    state = os.lstat(place)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != 0 or state.st_mode & 0o022:
        raise PermissionError(f"{place} is not a directory that only root can change")


def _open_to_all(place: str) -> None:
    for directory, _, files in os.walk(place):
        os.chmod(directory, 0o755)
        for file in files:
            path = os.path.join(directory, file)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
