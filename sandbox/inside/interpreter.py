"""The worker's interpreter, made to look to a program like one started for it alone."""

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

# Modules that programs commonly import; each costs a fresh interpreter more than it costs a fork.
COMMON_MODULES = tuple(
    """
    abc array bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools
    heapq io itertools json linecache math operator queue random re statistics string struct sys textwrap threading
    time traceback types typing
    """.split()  # noqa: SIM905 (a list of 33 quoted words is harder to read)
)
_NAME = b"sandbox.inside.zygote"  # what `ps` shows
_ARGUMENTS, _ENVIRONMENT = 45, 47  # fields of /proc/<pid>/stat after the command name: where they begin, then end
_REDUCED_MODULES = {"shutil", "tempfile"}  # imported by our own modules without the compression libraries
_OWN_MODULES = ("sandbox", "landlockpy", "pyseccomp")


def _forget_reduced() -> None:
    """Let modules that our own imports have brought, or kept out, be imported afresh by programs that want them."""
    for name, module in list(sys.modules.items()):
        if module is None or name in _REDUCED_MODULES:
            del sys.modules[name]


def prepare(
    preload: Sequence[str], scratch: str, third_party: Sequence[str], clean_environment: bool, proc: int
) -> None:
    """Import what programs will want and set up search path, streams, environment and signals.

    Args:
        preload: third-party modules to import.
        scratch: the programs' working directory.
        third_party: directories where the preloaded modules are found.
        clean_environment: False only where a test leaves that layer out.
        proc: descriptor of a `/proc` that shows this process.
    """
    standard = (*visible.shown_paths(), "/usr/")
    sys.path[:] = [path for path in sys.path if path.startswith(standard) and "-packages" not in path]
    sys.path += third_party
    sys.path_importer_cache.clear()
    sys.argv[:] = ["main.py"]
    sys.executable = visible.interpreter_program()
    sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix
    site.setquit()  # of what `site` does for an interpreter, only the names that programs use
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
    # SIGINT without a handler cannot reach process 1 of a namespace; SIGXFSZ ends a program that writes too much.
    for number in (signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def forget_command_line(proc: int) -> None:
    """Have `/proc/self/cmdline` and `environ` tell nothing of where we lie: they show this process's own memory."""
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


# What nearly every program does, in the ways in which most do it.
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
_REHEARSALS = 3  # after so many the interpreter's caches change no more


def rehearse() -> None:
    """Run a program of our own, so that the interpreter's caches of what programs look up are filled before any fork.

    Each page that a child writes to is copied for it, one page fault at a time; a cache that is full is only read.
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
    """The last thing before programs are served: nothing of ours is to be found or collected by them."""
    for name in list(sys.modules):
        if name.partition(".")[0] in _OWN_MODULES:
            del sys.modules[name]
    atexit._clear()  # what our own modules registered is not for programs to run
    gc.collect()
    kernel.trim_malloc()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the parent's objects


def third_party_packages(preload: Sequence[str]) -> list[SitePackage]:
    """Import `preload` in this (throw-away) process and tell which third-party packages that brought."""
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
        "MALLOC_ARENA_MAX": "2",  # otherwise each thread reserves 64 MiB of the address space that a program has
        # Thread pools as wide as the machine would fight over the core that a program gets.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def import_all(names: Sequence[str]) -> None:
    """Import what is to be warm in every program; what is not installed is passed over."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "numpy" in names:
        for name in ("numpy.random", "numpy.linalg", "numpy.fft"):  # imported on first use, otherwise by every child
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
