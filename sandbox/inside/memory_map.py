"""Make a worker cheaper to fork and to end: fewer mappings in its memory, and code on huge pages.

Each fork copies every mapping, and the page-table entries of memory that was written to. A child maps pages of files
again at first use, and all its mappings are removed when it ends. A shared library has five mappings, but two suffice:
code with constants, and written data. If the interpreter's code covers whole huge pages, the code is copied to huge
pages: a child inherits an entry per 2 MiB, and need not map this code at first use. Only the worker's own memory
changes, in ways that are allowed to programs too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass

from sandbox.inside.isolation import kernel

_HUGE_PAGE = 1 << 21
_CHUNK = 1 << 16


@dataclass(slots=True)
class _Mapping:
    """One line of `/proc/<pid>/maps`."""

    start: int
    end: int
    access: str
    offset: int
    path: str

    def continues(self, other: _Mapping) -> bool:
        """Whether this mapping follows `other` directly, in memory and in the same file."""
        return self.path == other.path and self.start == other.end and self.start - self.offset == other.base

    @property
    def base(self) -> int:
        return self.start - self.offset

    @property
    def length(self) -> int:
        return self.end - self.start


def _library_mappings(proc: int) -> list[_Mapping]:
    """Readable private mappings of files in this process, ordered by address."""
    descriptor = os.open("self/maps", os.O_RDONLY, dir_fd=proc)
    text = b""
    try:
        while chunk := os.read(descriptor, _CHUNK):
            text += chunk
    finally:
        os.close(descriptor)
    mappings: list[_Mapping] = []
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        addresses, access, offset, _, _, *path = line.split(None, 5)
        # A mapping that cannot be read is a gap between two parts of a library.
        if path and path[0].startswith("/") and access[0] == "r" and access[3] == "p":
            start, end = (int(number, 16) for number in addresses.split("-"))
            mappings.append(_Mapping(start, end, access[:3], int(offset, 16), path[0]))
    return mappings


def _code(mappings: list[_Mapping]) -> list[_Mapping]:
    """Mappings of code, joined with the headers and constants on both sides."""
    runs: list[_Mapping] = []
    for mapping in mappings:
        if "w" in mapping.access:
            continue
        if runs and mapping.continues(runs[-1]):
            executable = "x" in runs[-1].access + mapping.access
            runs[-1].end, runs[-1].access = mapping.end, "r-x" if executable else "r--"
        else:
            runs.append(mapping)
    return [run for run in runs if "x" in run.access]


def merge_mappings(proc: int) -> None:
    """Give neighbouring parts of each library the same access, so that the kernel joins them into one mapping.

    Args:
        proc: descriptor of a `/proc` that shows this process.
    """
    mappings = _library_mappings(proc)
    for constant, data in itertools.pairwise(mappings):
        # The loader wrote addresses to this part and then made it read-only. This protection is not needed against the
        # process's own code.
        if (constant.access, data.access) == ("r--", "rw-") and data.continues(constant):
            with contextlib.suppress(OSError):  # if the machine forbids the change, the mapping stays as it is
                kernel.protect(constant.start, constant.length, write=True)
            constant.access = "rw-"
    for run in _code(mappings):
        with contextlib.suppress(OSError):
            kernel.protect(run.start, run.length, execute=True)


def enlarge_code_pages(proc: int) -> None:
    """Put the interpreter's code on huge pages, if it covers whole huge pages and the kernel has free ones.

    Other code is not copied: it stays in memory that all workers share.

    Args:
        proc: descriptor of a `/proc` that shows this process.
    """
    for run in _code(_library_mappings(proc)):
        if not run.start <= kernel.INTERPRETER_CODE < run.end:
            continue
        start = -(-run.start // _HUGE_PAGE) * _HUGE_PAGE
        end = run.end // _HUGE_PAGE * _HUGE_PAGE
        if start < end:
            kernel.copy_code_to_huge_pages(start, end - start, _HUGE_PAGE)
