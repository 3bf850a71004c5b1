"""A copy of the interpreter that every user may read, where only root can read it and nothing can be mounted.

Programs never run as root. Where Python lies in root's home (pyenv, uv and conda put it there) and there are no mount
namespaces (the default of Docker and Kubernetes), what programs need of it is copied once to a directory of root's that
everybody can enter. So are preloaded third-party modules.
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
# Of the standard library what no program needs, half of its size.
_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "ensurepip")


def readable(paths: Iterable[str], uid: int = _NOBODY) -> bool:
    """Whether a user without privileges can read, or enter, all of `paths`; asked of root."""
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
    """The executable of the copy of this interpreter; it is made where there is none.

    Args:
        temporary: where to make it if the machine's directory for caches will not do.

    Raises:
        OSError: it cannot be made in any place that is root's alone and that everybody can enter.
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
    # What extension modules are linked with, and tests, are tens of megabytes.
    return {name for name in names if name in _LEFT_OUT or name.startswith("config-")}


def readable_packages(packages: Sequence[SitePackage], temporary: str) -> list[SitePackage]:
    """`packages`, those that only root can read replaced by copies.

    Raises:
        OSError: a copy cannot be made.
    """
    result = []
    for package in packages:
        if readable([package.path]):
            result.append(package)
            continue
        parent = os.path.dirname(package.path)
        # Beside one another as they were: shared libraries are found from where modules lie.
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
    """A directory of the cache, made by `fill` where there is none. Others may make it at the same time."""
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
    """A directory that nobody but root can have made or can change: what lies in it is executed by root."""
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
