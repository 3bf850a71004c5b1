"""The working directory of a cell's programs: a file system only for the cell, or a directory of the host."""

from __future__ import annotations

import os
import time

from sandbox.inside.isolation import filesystem, kernel
from sandbox.inside.isolation.seal import Seal


class Scratch:
    """The scratch directory of one cell. It is empty when a program begins.

    Args:
        seal: the worker's layers.
        size_bytes, files: most bytes and files that the cell's file system can hold.

    Raises:
        OSError: the mount is refused.
    """

    def __init__(self, seal: Seal, size_bytes: int, files: int) -> None:
        self._path, self._mounted = seal.scratch, seal.private_root
        self._size_bytes, self._files = size_bytes, files
        if self._mounted:
            filesystem.mount_scratch(size_bytes, files)
        self._as_begun = self._state()

    def begin(self) -> None:
        """Set the directory's times to now, and note its state."""
        # Set the times to the nanosecond. The times that the kernel sets change only once per tick, and a program may
        # begin and end within a tick.
        now = time.time_ns()
        os.utime(self._path, ns=(now, now))
        self._as_begun = self._state()

    def _state(self) -> tuple[int, ...]:
        """The fields of `stat` that any change in the directory alters. On a tmpfs, the size counts the entries."""
        try:
            state = os.stat(self._path)
        except FileNotFoundError:  # without a private root, a program may remove the directory
            return ()
        return state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def untouched(self) -> bool:
        """Whether no program has made or changed a file in the directory since `begin`."""
        return self._state() == self._as_begun and (self._mounted or not os.listdir(self._path))

    def full(self) -> bool:
        """Whether the cell's file system is full. False for a directory of the host, because the watch measures it."""
        if not self._mounted:
            return False
        state = os.statvfs(self._path)
        return state.f_bavail == 0 or state.f_favail == 0

    def empty(self) -> None:
        """Give the next program a directory without any trace of the last program."""
        if self._mounted:
            kernel.unmount(self._path)
            filesystem.mount_scratch(self._size_bytes, self._files)
            return
        import shutil  # imported here because only a cell without a private root needs it

        os.makedirs(self._path, exist_ok=True)
        os.chmod(self._path, 0o700)
        for entry in os.scandir(self._path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
