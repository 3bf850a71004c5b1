"""Sessions: programs whose state lives on between calls, for the tools `python` and `bash` of a conversation.

The code of a call is hostile. A result is only text: the session's processes can choose the text, and end their own
session, but nothing else. The cell between them and this process (`sandbox/inside/session_cell.py`) is trusted.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sandbox.outside.languages import find_tool
from sandbox.outside.session_host import OpenCell, SessionHost
from sandbox.types import IsolationError, Limits, ProgramStatus, SandboxError

NO_OUTPUT = "(no output)"
_LOST = {
    "python": "(the session is new: variables, imports and functions of earlier calls are lost; files are still there)",
    "bash": "(the shell is new: variables, functions and the working directory of earlier calls are lost; files are "
    "still there)",
}
_KEPT_BYTES = 1 << 16
_MOST_CODE_BYTES = 1 << 20
_GRACE_SECONDS = 10.0  # the cell ends a call at its deadline; if no reply comes within this time, the cell is lost
_LEAST_SECONDS = 0.05
_MAX_REPLY = 1 << 14
_DEFAULT_LIMITS = Limits()
# Characters that a terminal obeys, or that no text has. Tabs and the ends of lines stay.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# The shell runs the code of each call by itself, so that variables and the working directory live on. Descriptors 3
# and 4 (see `sandbox/inside/notebook.py`) are closed for the commands that it starts. All of this is a single line, so
# that error messages count the lines of a call from 1.
_SHELL = (
    "while IFS= builtin read -r -u 4 __call; do IFS= builtin read -r -d '' -u 3 __code; "
    """builtin eval "$__code" 3<&- 4>&-; builtin printf '%s %s\\n' "$__call" "$?" >&4; done"""
)
_SHELL_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}


class SessionEnd(StrEnum):
    """How a call of a session ended. After all but `OK` and `RAISED` the next call begins a new session.

    `RAISED`: the code raised an exception, or the exit status of the last command is not 0. `DIED`: the session's
    process ended, or it passed a limit that no other member names. `OUTPUT_LIMIT`: more than `Limits.output_bytes` were
    printed.
    """

    OK = "ok"
    RAISED = "raised"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DIED = "died"
    OUTPUT_LIMIT = "output_limit"


_ENDS = {
    ProgramStatus.OK: SessionEnd.OK,
    ProgramStatus.EXCEPTION: SessionEnd.RAISED,
    ProgramStatus.WALL_TIME: SessionEnd.TIMEOUT,
    ProgramStatus.CPU_TIME: SessionEnd.TIMEOUT,
    ProgramStatus.MEMORY: SessionEnd.MEMORY,
    ProgramStatus.OUTPUT: SessionEnd.OUTPUT_LIMIT,
}


@dataclass(frozen=True, slots=True)
class SessionResult:
    """The result of a call.

    Attributes:
        text: what the policy reads: output, errors, the value of the last expression, and why the call was ended.
        ended: how the call ended.
        seconds: real time of the call.
    """

    text: str
    ended: SessionEnd
    seconds: float

    @property
    def failure(self) -> str:
        """Kind of failure of the call, as conversations count them: empty, `timeout` or `raised`."""
        if self.ended is SessionEnd.OK:
            return ""
        return "timeout" if self.ended is SessionEnd.TIMEOUT else "raised"


class _Session:
    """A session. Its process starts with the first call. Only one thread at a time may use it.

    Use it as a context manager, or call `close`. Only the process that makes the session may use it; the session ends
    with this process.

    Args:
        host: where the session runs.
        limits: limits of each call; those of memory, processes and files hold for the whole session.
        kept_bytes: bytes of output that the text of a result has at most; the middle of a longer output is left out.

    Raises:
        SandboxError: the host is closed.
        IsolationError: sessions of this kind cannot run on this machine.
    """

    _kind = ""

    def __init__(self, host: SessionHost, limits: Limits = _DEFAULT_LIMITS, kept_bytes: int = _KEPT_BYTES) -> None:
        self._host, self._limits, self._kept_bytes = host, limits, kept_bytes
        self._request = self._session_request()
        self._owner, self._closed = os.getpid(), False
        self._cell: OpenCell | None = None
        self._lost = False  # whether state of earlier calls is lost, and no result has said so

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _session_request(self) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        """End the session and everything that it started. Can be called twice."""
        self._closed = True
        cell, self._cell = self._cell, None
        if cell is not None and self._owner == os.getpid():
            cell.close()

    def run(self, code: str, most_s: float = math.inf) -> SessionResult:
        """Run code in the session, and wait for its end.

        A failure of the code is part of the result, never an exception. After a `SandboxError` the session is closed.

        Args:
            code: the code of the call.
            most_s: longest time of this call in seconds, if it is shorter than `Limits.wall_s`.

        Raises:
            SandboxError: the sandbox failed, or the session is closed or belongs to another process.
        """
        if self._closed or self._owner != os.getpid():
            raise SandboxError("this session is closed, or belongs to another process")
        source = code.encode("utf-8", "surrogatepass")
        if len(source) > _MOST_CODE_BYTES:
            return SessionResult(f"the code is longer than {_MOST_CODE_BYTES} bytes", SessionEnd.RAISED, 0.0)
        if self._cell is None:
            self._cell = self._host.open_cell(self._request, self._limits, self._kept_bytes)
        wall_s = min(self._limits.wall_s, max(most_s, _LEAST_SECONDS))
        try:
            reply, output = self._exchange(self._cell, source, wall_s)
        except (OSError, SandboxError) as problem:
            self.close()
            raise SandboxError(f"the sandbox of a session failed: {problem}") from problem
        return self._result(reply, output, wall_s)

    def _exchange(self, cell: OpenCell, source: bytes, wall_s: float) -> tuple[dict[str, Any], bytes]:
        os.ftruncate(cell.code, 0)
        rest = memoryview(source)
        while rest:
            rest = rest[os.pwrite(cell.code, rest, len(source) - len(rest)) :]
        cell.channel.settimeout(wall_s + _GRACE_SECONDS)
        cell.channel.send(json.dumps({"wall_s": wall_s}).encode())
        message = cell.channel.recv(_MAX_REPLY)
        if not message:
            raise SandboxError("the session's cell ended without an answer")
        (reply,) = json.loads(message)
        if reply["status"] == ProgramStatus.SANDBOX_ERROR:
            raise SandboxError(reply["reason"])
        output = os.pread(cell.output, reply["kept"], 0)
        os.ftruncate(cell.output, 0)
        return reply, output

    def _result(self, reply: dict[str, Any], output: bytes, wall_s: float) -> SessionResult:
        status, head = ProgramStatus(reply["status"]), reply["head"]
        ended = _ENDS.get(status, SessionEnd.DIED)
        parts = [_LOST[self._kind]] if self._lost else []
        if reply["left_out"]:
            mark = f"[... {reply['left_out']} bytes left out ...]"
            shown = f"{_visible(output[:head]).rstrip()}\n{mark}\n{_visible(output[head:]).strip()}"
        else:
            shown = _visible(output).rstrip()
        self._lost = ended not in (SessionEnd.OK, SessionEnd.RAISED)
        reason = self._reason(status, reply["exit_code"], wall_s)
        parts += [part for part in (shown, reason) if part] or [NO_OUTPUT]
        return SessionResult("\n".join(parts), ended, reply["wall_s"])

    def _reason(self, status: ProgramStatus, exit_code: int, wall_s: float) -> str:
        """A sentence that says why a call was ended; empty if the call ended by itself and has no exit status."""
        limits = self._limits
        if status is ProgramStatus.OK:
            return ""
        if status is ProgramStatus.EXCEPTION:
            return f"(exit status {exit_code})" if self._kind == "bash" else ""
        reasons = {
            ProgramStatus.WALL_TIME: f"it took longer than {wall_s:.3g} seconds",
            ProgramStatus.CPU_TIME: f"it used more than {limits.cpu:g} seconds of processor time",
            ProgramStatus.MEMORY: f"it used more than {limits.memory_bytes >> 20} MiB of memory",
            ProgramStatus.OUTPUT: f"it printed more than {limits.output_bytes} bytes",
            ProgramStatus.DISK: f"its files were larger than {limits.disk_bytes >> 20} MiB",
            ProgramStatus.PROCESSES: f"it had more than {limits.processes} processes and threads, or did not stop",
        }
        if status in reasons:
            return f"(the call was ended: {reasons[status]})"
        what = "shell" if self._kind == "bash" else "interpreter"
        return f"(the {what} ended with exit status {exit_code})"


class PythonSession(_Session):
    """A Python interpreter that keeps its variables, imports and functions from call to call."""

    _kind = "python"

    def _session_request(self) -> dict[str, Any]:
        return {"kind": "notebook"}


class BashSession(_Session):
    """A shell that keeps its variables, functions and working directory from call to call."""

    _kind = "bash"

    def _session_request(self) -> dict[str, Any]:
        shell = find_tool("bash")
        if shell is None or not self._host.allows_executables:
            reason = "bash is not installed" if shell is None else "this machine grants no process and mount namespaces"
            raise IsolationError(f"bash sessions cannot run: {reason}; see `python -m sandbox doctor`")
        arguments = [shell, "--noprofile", "--norc", "-c", _SHELL, "bash"]
        return {"kind": "execute", "arguments": arguments, "environment": _SHELL_ENVIRONMENT}


def _visible(output: bytes) -> str:
    """Decode output for a text: no surrogates, and no characters that a terminal obeys."""
    text = output.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("\ufffd", text)
