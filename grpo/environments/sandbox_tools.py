"""The tools that run in the sandbox: what the policy reads about them, and the sessions behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpo.environments.spec import WorldSpec

if TYPE_CHECKING:
    from sandbox.outside.session import BashSession, PythonSession

_MEBIBYTE = 1 << 20


def python(code: str) -> str:
    """Run a Python program and return what it prints, and the value of its last line. Variables live on in later calls.

    Args:
        code: The program.
    """
    raise NotImplementedError(code)


def bash(command: str) -> str:
    """Run a shell command and return what it prints. Files live on in later calls.

    Args:
        command: The command.
    """
    raise NotImplementedError(command)


class SandboxSessions:
    """Opens the sandbox sessions of conversations (`grpo.environments.world.SessionFactory`).

    Make it in the process that forks the conversations' processes: they share its warm worker. A session ends with the
    process that opened it.

    Args:
        spec: tools of the run.

    Raises:
        ValueError: this machine cannot give the isolation that programs need, or `bash` is a tool and cannot run here.
        sandbox.SandboxError: the sandbox could not be started.
    """

    def __init__(self, spec: WorldSpec) -> None:
        # Without these tools, the processes of conversations need not have this code in their memory.
        from sandbox.outside.session import BashSession, PythonSession
        from sandbox.outside.session_host import SessionHost
        from sandbox.types import IsolationError, Limits

        self._kinds: dict[str, type[PythonSession | BashSession]] = {"python": PythonSession, "bash": BashSession}
        self._deadline_s, self._limits = spec.tool_deadline_s, Limits
        try:
            self._host = SessionHost()
            if "bash" in spec.tools:
                self("bash", spec.bash).close()
        except IsolationError as problem:
            raise ValueError(str(problem)) from problem

    def __call__(self, name: str, settings: Mapping[str, Any]) -> PythonSession | BashSession:
        """Open a session.

        Args:
            name: `python` or `bash`.
            settings: `memory_mib`, and fields of `sandbox.Limits`.
        """
        limits = {"wall_s": self._deadline_s, **settings}
        if "memory_mib" in limits:
            limits["memory_bytes"] = limits.pop("memory_mib") * _MEBIBYTE
        return self._kinds[name](self._host, self._limits(**limits))

    def close(self) -> None:
        """End all sessions."""
        self._host.close()
