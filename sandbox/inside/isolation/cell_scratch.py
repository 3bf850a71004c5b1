"""The working directory of a cell's programs: a file system of the cell's own, or a directory of the host's."""

from __future__ import annotations

import os
import time

from sandbox.inside.isolation import filesystem, kernel
from sandbox.inside.isolation.seal import Seal


class Scratch:
    """Made for one cell, and empty when each of its programs begins.

    Args:
        seal: the worker's layers.
        size_bytes, files: what it may hold, where it is a file system.

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
        """Give it the time of now, and note how it is."""
        # To the nanosecond: the kernel's own stamps have the time of a tick, in which a program may begin and end.
        now = time.time_ns()
        os.utime(self._path, ns=(now, now))
        self._as_begun = self._state()

    def _state(self) -> tuple[int, ...]:
        """What `stat` says of the directory while nobody touches it; a tmpfs counts entries in the size."""
        try:
            state = os.stat(self._path)
        except FileNotFoundError:  # where nothing holds a program back from removing it
            return ()
        return state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def untouched(self) -> bool:
        """Whether no program has made or changed anything in it since `begin`."""
        return self._state() == self._as_begun and (self._mounted or not os.listdir(self._path))

    def full(self) -> bool:
        """Whether its file system has no room; of a directory of the host's the watch knows the size."""
        if not self._mounted:
            return False
        state = os.statvfs(self._path)
        return state.f_bavail == 0 or state.f_favail == 0

    def empty(self) -> None:
        """Give the next program a directory that tells nothing of the last."""
        if self._mounted:
            kernel.unmount(self._path)
            filesystem.mount_scratch(self._size_bytes, self._files)
            return
        import shutil  # for a cell without a private root only

        os.makedirs(self._path, exist_ok=True)
        os.chmod(self._path, 0o700)
        for entry in os.scandir(self._path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
