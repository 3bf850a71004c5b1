"""A scratch directory on the host, for workers that cannot mount one. A lock shows that the directory is in use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile

from sandbox.inside.isolation.layers import FIRST_OWN_UID

_PREFIX = "verigrpo-sandbox-"


class HostScratch:
    """The directory of one worker. Programs work in its subdirectory `run`, and may not change the directory itself.

    A new `HostScratch` first removes directories that ended workers have left behind, which nobody locks any more.

    Args:
        parent: directory in which the new directory is made.
        uid: user that programs run as; None for the current user.
    """

    def __init__(self, parent: str, uid: int | None) -> None:
        for entry in os.scandir(parent):
            if entry.name.startswith(_PREFIX):
                owner = entry.stat(follow_symlinks=False).st_uid
                if owner == os.geteuid() or owner >= FIRST_OWN_UID:
                    _sweep(entry.path)
        self._path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        self._lock = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.run = os.path.join(self._path, "run")
        os.mkdir(self.run, 0o700)
        if uid is not None:
            os.chown(self.run, uid, uid)
            os.chown(self._path, uid, uid)

    def let_go(self) -> None:
        """Close the lock's descriptor, in a process that must not hold the lock."""
        os.close(self._lock)

    def remove(self) -> None:
        """Remove the directory and its contents."""
        with contextlib.suppress(OSError):
            os.chmod(self.run, 0o700)  # the last program may have changed the mode
        shutil.rmtree(self._path, ignore_errors=True)


def _sweep(path: str) -> None:
    """Remove a scratch directory if its worker has ended."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass  # its worker has not ended
    finally:
        os.close(lock)
