"""A process that is what a test needs it to be (root, unprivileged, without namespaces) and runs programs on request.

Started as `python sandbox_host.py MODE`; requests and answers are pickles on standard input and output, which is sound
between two processes of one test.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
# The last two have no namespaces: an unprivileged user, and root as in a container by default.
MODES = ("root", "unprivileged", "no_namespaces", "root_in_a_container")
WITHOUT_NAMESPACES = ("no_namespaces", "root_in_a_container")
# What Docker leaves to root: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
# net_raw, sys_chroot, mknod, audit_write, setfcap.
_CONTAINER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
_UNPRIVILEGED = 54_321


class Host:
    """The test's end of a host process."""

    def __init__(self, mode: str, temporary: Path | None = None, **arguments: Any) -> None:
        self.mode = mode
        self.temporary = temporary or Path(tempfile.mkdtemp(prefix="sandbox-test-"))
        self.temporary.chmod(0o777)
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "SANDBOX_TEST_SECRET": "token-3141592653"}
        environment["TMPDIR"] = str(self.temporary)
        self._process = subprocess.Popen(
            [sys.executable, __file__, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            self.isolation = self.ask("open", **arguments)
        except Exception:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((method, arguments, keywords), self._process.stdin)
        self._process.stdin.flush()
        kind, value = pickle.load(self._process.stdout)
        if kind == "raised":
            raise value
        return value

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self.remove_temporary()

    def remove_temporary(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    @property
    def scratch_directories(self) -> list[Path]:
        """What workers without mounts have made on the host's file system."""
        return list(self.temporary.glob("verigrpo-sandbox-*"))


def make_interpreter_readable() -> None:
    """Where only root can reach the interpreter, show it to all in a mount namespace of this process alone."""
    from sandbox.inside.isolation import kernel

    prefix = os.path.realpath(sys.base_prefix)
    closed = [parent for parent in reversed(Path(prefix).parents) if parent.stat().st_mode & 0o005 != 0o005]
    if not closed:
        return
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    held = os.open(prefix, os.O_PATH)
    kernel.mount("tmpfs", str(closed[0]), "tmpfs", 0, "mode=755")
    os.makedirs(prefix)
    kernel.mount(f"/proc/self/fd/{held}", prefix, None, kernel.MS_BIND | kernel.MS_REC)
    os.close(held)


def drop_to_container() -> None:
    """Keep those of root's capabilities that a container has by default."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in set(range(41)) - set(_CONTAINER_CAPABILITIES):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    kept = sum(1 << capability for capability in _CONTAINER_CAPABILITIES)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", low, low, 0, high, high, 0)
    assert libc.capset(header, data) == 0


def forbid_namespaces() -> None:
    """What an unprivileged container does: no new namespaces, whoever asks."""
    import pyseccomp

    from sandbox.inside.isolation import kernel

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for flag in (
        kernel.CLONE_NEWUSER,
        kernel.CLONE_NEWNS,
        kernel.CLONE_NEWPID,
        kernel.CLONE_NEWNET,
        kernel.CLONE_NEWIPC,
        kernel.CLONE_NEWUTS,
    ):
        for call in ("unshare", "clone"):
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), call, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.load()


class Sessions:
    """Sessions of a host process, each under a name."""

    def __init__(self, **arguments: Any) -> None:
        from sandbox.outside.session_host import SessionHost

        self._host, self._open = SessionHost(**arguments), {}
        self.isolation = self._host.isolation

    def begin(self, name: str, kind: str = "python", **limits: Any) -> None:
        from sandbox import Limits
        from sandbox.outside.session import BashSession, PythonSession

        kinds = {"python": PythonSession, "bash": BashSession}
        self._open[name] = kinds[kind](self._host, Limits(**{"wall_s": 20.0, **limits}))

    def run(self, name: str, code: str, **options: Any) -> Any:
        return self._open[name].run(code, **options)

    def end(self, name: str) -> None:
        self._open.pop(name).close()

    def close(self) -> None:
        for session in self._open.values():
            session.close()
        self._host.close()


def main() -> None:
    mode = sys.argv[1]
    if mode == "root_in_a_container":
        drop_to_container()
    elif mode != "root" and os.geteuid() == 0:
        make_interpreter_readable()
        os.setgroups([])
        os.setresgid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
        os.setresuid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self belongs to the new user
    if mode in WITHOUT_NAMESPACES:
        forbid_namespaces()
    from sandbox import Sandbox

    sandbox: Sandbox | Sessions | None = None
    answers = os.fdopen(os.dup(1), "wb")
    while True:
        try:
            method, arguments, keywords = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            value: Any
            if method == "open":
                sandbox = (Sessions if keywords.pop("sessions", False) else Sandbox)(*arguments, **keywords)
                value = sandbox.isolation
            else:
                value = getattr(sandbox, method)
                value = value(*arguments, **keywords) if callable(value) else value
            answer = ("returned", value)
        except Exception as problem:
            answer = ("raised", problem)
        pickle.dump(answer, answers)
        answers.flush()
    if sandbox is not None:
        sandbox.close()


if __name__ == "__main__":
    main()
