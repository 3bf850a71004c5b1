"""Prepare the worker's interpreter, so that a program sees it as an interpreter started only for that program."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import linecache
import os
import signal
import site
import sys
from collections.abc import Sequence

from sandbox import visible
from sandbox.inside import program
from sandbox.inside.isolation import filesystem, kernel
from sandbox.inside.isolation.filesystem import SitePackage

# Modules that programs commonly import. Forking an interpreter that has imported them costs less than importing them.
COMMON_MODULES = tuple(
    """
    abc array bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools
    heapq io itertools json linecache math operator queue random re statistics string struct sys textwrap threading
    time traceback types typing
    """.split()  # noqa: SIM905 (a list of 33 quoted words is harder to read)
)
_NAME = b"sandbox.inside.zygote"  # what `ps` shows
_ARGUMENTS, _ENVIRONMENT = 45, 47  # fields of /proc/<pid>/stat: the start address; the next field is the end address
_REDUCED_MODULES = {"shutil", "tempfile"}  # modules of this package import them without the compression libraries
_OWN_MODULES = ("sandbox", "landlockpy", "pyseccomp")


def _forget_reduced() -> None:
    """Forget modules that this package's imports loaded in part or blocked, so that programs can import them again."""
    for name, module in list(sys.modules.items()):
        if module is None or name in _REDUCED_MODULES:
            del sys.modules[name]


def prepare(
    preload: Sequence[str], scratch: str, third_party: Sequence[str], clean_environment: bool, proc: int
) -> None:
    """Import common modules, and set up the search path, streams, environment and signals.

    Args:
        preload: third-party modules to import.
        scratch: the programs' working directory.
        third_party: directories of the preloaded modules.
        clean_environment: False only if a test switches the layer of this name off.
        proc: descriptor of a `/proc` that shows this process.
    """
    standard = (*visible.shown_paths(), "/usr/")
    sys.path[:] = [path for path in sys.path if path.startswith(standard) and "-packages" not in path]
    sys.path += third_party
    sys.path_importer_cache.clear()
    sys.argv[:] = ["main.py"]
    sys.executable = visible.interpreter_program()
    sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix
    site.setquit()  # define only those names of `site` that programs use
    site.setcopyright()
    site.sethelper()
    _forget_reduced()
    import_all((*COMMON_MODULES, *preload))
    rehearse()
    program.open_standard_streams()
    kernel.limit_malloc_arenas(2)
    if clean_environment:
        os.environ.clear()
        forget_command_line(proc)
    os.environ.update(program_environment(scratch, third_party))
    # Restore the default actions: SIGINT then has no effect on process 1 of a namespace, and SIGXFSZ ends a program
    # that writes too much.
    for number in (signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def forget_command_line(proc: int) -> None:
    """Overwrite the memory behind `/proc/self/cmdline` and `environ`, so that they do not show this package."""
    descriptor = os.open("self/stat", os.O_RDONLY, dir_fd=proc)
    try:
        fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
    finally:
        os.close(descriptor)
    for first in (_ARGUMENTS, _ENVIRONMENT):
        start, end = int(fields[first]), int(fields[first + 1])
        if 0 < start < end:
            kernel.overwrite_memory(start, end - start, _NAME if first == _ARGUMENTS else b"")
    sys.orig_argv[:] = sys.argv


# This program does what nearly every program does, in the usual ways.
_REHEARSAL = b"""
import sys
def main():
    n, *rest = map(int, input().split())
    table = {}
    for i in range(n):
        word, value = sys.stdin.readline().strip().split()
        table[word] = table.get(word, 0) + int(value)
    values = sorted(table.items(), key=lambda pair: -pair[1])
    print(sum(rest), len(values))
    print(*[f"{word}={value:.2f}" for word, value in values], sep=", ")
    sys.stdout.write("\\n".join(map(str, rest)) + "\\n")
    rest = list(map(int, sys.stdin.read().split()))
    for i, value in enumerate(rest):
        print(i, value)
    print(max(rest), " ".join(str(value) for value in rest))
if __name__ == "__main__":
    main()
"""
_REHEARSAL_INPUT = b"3 1 2 3\na 1\nb 2\na 3\n4 5 6\n7 8\n"
_REHEARSALS = 3  # after three runs the interpreter's caches no longer change


def rehearse() -> None:
    """Run a typical program before any fork, to fill the interpreter's caches.

    Each page that a child writes to costs a page fault and a copy. A filled cache is only read, so its pages are not
    copied.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    real_main = sys.modules["__main__"]
    for _ in range(_REHEARSALS):
        place = os.memfd_create("rehearsal")
        os.write(place, _REHEARSAL_INPUT)
        os.lseek(place, 0, os.SEEK_SET)
        program.open_standard_streams(place, nowhere, nowhere)
        module = program.main_module(_REHEARSAL)
        code = program.executed(_REHEARSAL, program.compiled(_REHEARSAL), module, False)
        assert code == 0, code
        os.close(place)
    os.close(nowhere)
    sys.modules["__main__"] = real_main
    linecache.clearcache()


def settle() -> None:
    """Hide this package's modules and objects from programs and the garbage collector. Call it just before serving."""
    for name in list(sys.modules):
        if name.partition(".")[0] in _OWN_MODULES:
            del sys.modules[name]
    atexit._clear()  # programs must not run this package's exit functions
    gc.collect()
    kernel.trim_malloc()
    gc.freeze()  # otherwise a collection in a child would copy every page of the parent's objects


def third_party_packages(preload: Sequence[str]) -> list[SitePackage]:
    """Import `preload` in this (throw-away) process and list the third-party packages that it loaded."""
    import_all(preload)
    loaded = {name.partition(".")[0] for name in sys.modules} - set(_OWN_MODULES)
    return filesystem.site_packages(sorted(loaded))


def program_environment(scratch: str, third_party: Sequence[str]) -> dict[str, str]:
    """The whole environment of a program."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(third_party),
        "MALLOC_ARENA_MAX": "2",  # otherwise each thread reserves 64 MiB of a program's address space
        # A program gets a single core, so larger thread pools would only slow it down.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def import_all(names: Sequence[str]) -> None:
    """Import the named modules that are installed, so that they are already loaded in every program."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "numpy" in names:
        # Without this, every child would import these modules at first use.
        for name in ("numpy.random", "numpy.linalg", "numpy.fft"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
