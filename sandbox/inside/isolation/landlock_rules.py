"""Make a worker's Landlock rules in a separate process, so that no later fork copies the memory for that work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Sequence

from sandbox.inside.child import FIRST_FREE
from sandbox.inside.isolation import filesystem
from sandbox.inside.isolation.filesystem import SitePackage

_MAX_MESSAGE = 1000
_READY = b"ready"


class RulesMaker:
    """A forked process that makes the rules when `make` is called, and then ends.

    Fork it before entering a private root, while third-party modules can still be imported. The change of the root also
    applies to the forked process, because it is in the same mount namespace.

    Args:
        private_root: whether the rules are for a private root.
        scratch: the programs' working directory.
        packages: third-party packages that programs may read.
    """

    def __init__(self, private_root: bool, scratch: str, packages: Sequence[SitePackage]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._channel.close()
            _make_and_send(theirs, private_root, scratch, packages)
        theirs.close()
        self._answer = self._channel.recv(_MAX_MESSAGE)

    def make(self) -> int | str:
        """Return a descriptor of the rules, at least `FIRST_FREE`, or the reason why none exist. Call it only once."""
        descriptors: list[int] = []
        with self._channel as channel:
            if self._answer == _READY:
                channel.send(_READY)
                self._answer, descriptors, _, _ = socket.recv_fds(channel, _MAX_MESSAGE, 1)
        os.waitpid(self._pid, 0)
        if not descriptors:
            return self._answer.decode("utf-8", "replace") or "the process that makes the rules ended early"
        rules = fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        os.close(descriptors[0])
        return rules


def _make_and_send(channel: socket.socket, private_root: bool, scratch: str, packages: Sequence[SitePackage]) -> None:
    try:
        import landlockpy  # noqa: F401 (imported now, because it cannot be found after the change of the root)

        channel.send(_READY)
        if channel.recv(_MAX_MESSAGE) == _READY:
            with filesystem.landlock_rules(private_root, scratch, packages) as rules:
                socket.send_fds(channel, [_READY], [rules.fileno()])
    except (ImportError, OSError) as problem:
        with contextlib.suppress(OSError):
            channel.send(str(problem).encode("utf-8", "replace")[:_MAX_MESSAGE])
    finally:
        os._exit(0)
