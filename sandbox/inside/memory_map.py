"""A worker's memory map, made cheaper to fork and to end: fewer mappings, and code on huge pages.

Each fork copies every mapping and every entry of the page tables of what was written to, and maps files anew at first
touch; each end takes it all down again. A shared library has five mappings, of which two suffice: what is executed or
only read, and what is written. The interpreter's code, where it covers whole huge pages, is copied into such: an entry
for each 2 MiB is inherited, nothing is mapped at first touch. It is the worker's own memory and code only; programs may
do the same to theirs.
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
        """Whether it is the part of the same file that follows, right behind in memory."""
        return self.path == other.path and self.start == other.end and self.start - self.offset == other.base

    @property
    def base(self) -> int:
        return self.start - self.offset

    @property
    def length(self) -> int:
        return self.end - self.start


def _library_mappings(proc: int) -> list[_Mapping]:
    """Private mappings of files in this process that can be read, by address."""
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
        # What cannot be read is a gap between two parts of a library, behind the end of its file perhaps.
        if path and path[0].startswith("/") and access[0] == "r" and access[3] == "p":
            start, end = (int(number, 16) for number in addresses.split("-"))
            mappings.append(_Mapping(start, end, access[:3], int(offset, 16), path[0]))
    return mappings


def _code(mappings: list[_Mapping]) -> list[_Mapping]:
    """What is executed, together with the headers and constants on both sides of it."""
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
    """Give the neighbouring parts of each library the same access, so that the kernel makes one mapping of them.

    Args:
        proc: descriptor of a `/proc` that shows this process.
    """
    mappings = _library_mappings(proc)
    for constant, data in itertools.pairwise(mappings):
        # What the loader wrote addresses to and then closed; nothing here guards against the process's own code.
        if (constant.access, data.access) == ("r--", "rw-") and data.continues(constant):
            with contextlib.suppress(OSError):  # a policy of the machine's; the mapping stays as it is
                kernel.protect(constant.start, constant.length, write=True)
            constant.access = "rw-"
    for run in _code(mappings):
        with contextlib.suppress(OSError):
            kernel.protect(run.start, run.length, execute=True)


def enlarge_code_pages(proc: int) -> None:
    """Put the interpreter's code on huge pages, where it covers whole ones and the kernel has some to give.

    Other code stays where all workers share it.

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
