"""The user's program of a conversation: it is started, gets its row, and is killed with its whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Variables of the driver that a program gets. Others may hold secrets, or settings of the run's engines.
PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "VIRTUAL_ENV"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS"),
)
# Size of the ends of standard output and standard error that are kept, in bytes.
_KEPT = 64 << 10
# Time for the last output to come through the pipes after a program's end, in seconds. A process that left the
# program's group may hold the pipes open.
_DRAIN_S = 1.0


class BadOutput(ValueError):
    """A program printed an answer or a reward that cannot be used."""


@dataclass(frozen=True, slots=True)
class AgentProgram:
    """The program that plays a conversation.

    Attributes:
        command: program and arguments. No shell reads them.
        passed: names of further variables that the program gets from the driver's environment.
    """

    command: tuple[str, ...]
    passed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.command or not all(isinstance(word, str) and word for word in self.command):
            raise ValueError(f"an agent's command is {list(self.command)}; expected a program and its arguments")
        if shutil.which(self.command[0], path=_path()) is None:
            raise ValueError(
                f"the agent's program {self.command[0]!r} does not exist, or may not be run; write its path, or a "
                "program on PATH such as python"
            )

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a program: the variables that it gets from the driver, and `variables`."""
        kept = {name: os.environ[name] for name in (*PASSED, *self.passed) if name in os.environ}
        # A proxy that the user passes must not get the calls to this machine.
        direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return kept | {"PATH": _path()} | direct | dict(variables)


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """How a program ended.

    Attributes:
        code: exit code; minus the number of the signal that ended it; None if it was killed at its deadline.
        output: end of the standard output.
        errors: end of the standard error.
    """

    code: int | None
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Printed:
    """What a program printed as its last line: `{"answer": ..., "reward": ..., "parts": {...}}`; all may be absent.

    Attributes:
        answer: answer that verifiers judge, in place of the policy's last turn.
        reward: reward of the conversation.
        parts: named parts of the reward.
    """

    answer: str | None = None
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, output: str) -> Printed:
        """Read the last line of a standard output. A line that is no JSON object with one of the keys says nothing.

        Raises:
            BadOutput: the answer is no text, or a reward is no finite number.
        """
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        try:
            printed = json.loads(last)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(printed, dict):
            return cls()
        answer, reward, parts = printed.get("answer"), printed.get("reward"), printed.get("parts") or {}
        if not isinstance(parts, dict):
            raise BadOutput(f"the program printed parts={parts!r:.100}; expected an object of numbers")
        if isinstance(answer, dict | list):
            raise BadOutput(f"the program printed answer={answer!r:.100}; expected text or a number")
        return cls(
            answer=answer if answer is None or isinstance(answer, str) else json.dumps(answer),
            reward=None if reward is None else _number(reward, "reward"),
            parts={name: _number(value, f"parts.{name}") for name, value in parts.items()},
        )


async def run_program(
    command: Sequence[str], environment: Mapping[str, str], stdin: Path, deadline_s: float
) -> ProgramRun:
    """Run a program until its end, or kill it at its deadline. No process of its group survives.

    Args:
        command: program and arguments.
        environment: environment of the program.
        stdin: file that is the program's standard input.
        deadline_s: longest time, in seconds.

    Raises:
        OSError: the program cannot be started.
    """
    loop = asyncio.get_running_loop()
    with stdin.open("rb") as rows:
        # A session of its own: a signal to its group reaches all that it starts, and Ctrl-C does not reach it.
        process = subprocess.Popen(
            list(command),
            stdin=rows,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    assert process.stdout
    assert process.stderr
    tails = (_Tail(), _Tail())
    transports: list[asyncio.ReadTransport] = []
    try:
        for tail, pipe in zip(tails, (process.stdout, process.stderr), strict=True):
            transport, _ = await loop.connect_read_pipe(lambda tail=tail: tail, pipe)  # type: ignore[misc]
            transports.append(transport)
        ended = await _ended_within(process.pid, deadline_s)
    finally:
        # The process has not been waited for, so its number still belongs to it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        await asyncio.wait([asyncio.ensure_future(tail.closed.wait()) for tail in tails], timeout=_DRAIN_S)
        for transport in transports:
            transport.close()
    return ProgramRun(process.returncode if ended else None, tails[0].text, tails[1].text)


async def _ended_within(pid: int, deadline_s: float) -> bool:
    """Wait for the end of a process of ours, without taking its exit status; return whether it came in time."""
    loop = asyncio.get_running_loop()
    handle = os.pidfd_open(pid)
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), deadline_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return True


class _Tail(asyncio.Protocol):
    """The end of a stream."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > 2 * _KEPT:
            del self._kept[:-_KEPT]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    @property
    def text(self) -> str:
        return bytes(self._kept[-_KEPT:]).decode("utf-8", "replace")


def _path() -> str:
    """Return the search path of programs. `python` is first of all the interpreter of the run."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _number(value: Any, name: str) -> float:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise BadOutput(f"the program printed {name}={value!r:.100}; expected a finite number")
    return float(value)
