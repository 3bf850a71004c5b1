"""Types of the sandbox: languages, limits, tests, results, and how well a run was isolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

MEBIBYTE = 1 << 20
STDERR_BYTES = 1 << 16  # the part of standard error that is kept; `Limits` has the limit of standard output


class IsolationLevel(IntEnum):
    """How strongly a program is isolated, from weakest to strongest. Compare with `<` and `>=`.

    - `NONE`: no layer.
    - `LIMITED`: only resource limits.
    - `FILTERED`: also the system-call allow-list.
    - `CONFINED`: also a view of the file system that shows only what a program needs (Landlock or a private root).
    - `FULL`: all layers: separate user, process, mount, network and IPC namespaces, a private root, Landlock, the
      allow-list and limits.
    """

    NONE = 0
    LIMITED = 1
    FILTERED = 2
    CONFINED = 3
    FULL = 4


class Layer(StrEnum):
    """One mechanism that isolates a program from the machine."""

    OWN_UID = "own uid"
    USER_NAMESPACE = "user namespace"
    PROCESS_NAMESPACE = "process namespace"
    NETWORK_NAMESPACE = "network namespace"
    IPC_NAMESPACE = "ipc namespace"
    PRIVATE_ROOT = "private root"
    PRIVATE_PROC = "private proc"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"
    RESOURCE_LIMITS = "resource limits"
    WATCH = "watch"
    CGROUP = "cgroup"
    NO_CAPABILITIES = "no capabilities"
    CLOSED_DESCRIPTORS = "closed descriptors"
    CLEAN_ENVIRONMENT = "clean environment"
    DESCENDANT_KILL = "descendant kill"


@dataclass(frozen=True, slots=True)
class MissingLayer:
    """A layer that is not in force, the reason, and what a person can do about it."""

    layer: Layer
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation of a worker's programs: the level, the layers in force, and the missing layers."""

    level: IsolationLevel
    active: tuple[Layer, ...]
    missing: tuple[MissingLayer, ...]

    def __str__(self) -> str:
        text = f"{self.level.name.lower()}: {', '.join(self.active) or 'no layer'}"
        if self.missing:
            text += "; missing: " + ", ".join(str(item.layer) for item in self.missing)
        return text

    def refusal(self, wanted: IsolationLevel) -> str:
        """A message that says why this isolation is below `wanted`, and how to get the missing layers."""
        missing = "; ".join(f"{item.layer} ({item.reason}): {item.remedy}" for item in self.missing)
        return (
            f"the sandbox is configured to need isolation {wanted.name.lower()}, this machine gives "
            f"{self.level.name.lower()}; missing: {missing}"
        )


class ProgramStatus(StrEnum):
    """How a program ended. `SANDBOX_ERROR`, `BAD_TEST` and `SKIPPED` say nothing about the program.

    `BAD_TEST`: the test failed before it called the program. `SKIPPED`: the test ended without a call of the program,
    so it neither passed nor failed. The program causes all other statuses.
    """

    OK = "ok"
    NONZERO_EXIT = "nonzero exit"
    SIGNAL = "signal"
    WALL_TIME = "wall time"
    CPU_TIME = "cpu time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    DISK = "disk"
    COMPILE_ERROR = "compile error"
    NO_COMPILER = "no compiler"
    WRONG_ANSWER = "wrong answer"
    EXCEPTION = "exception"
    BAD_REPLY = "bad reply"
    BAD_TEST = "bad test"
    SKIPPED = "skipped"
    SANDBOX_ERROR = "sandbox error"


class Language(StrEnum):
    """The language that a program is written in."""

    PYTHON = "python"
    CPP = "cpp"
    JAVASCRIPT = "javascript"
    BASH = "bash"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may use.

    A program that passes a limit ends with the `ProgramStatus` of this limit. There are two exceptions. A program that
    passes `files` gets the status of `disk_bytes`. A program that has `open_files` descriptors cannot open another one,
    but is not ended.

    Attributes:
        wall_s: real time, from the start of the program's process.
        cpu_s: processor time of all processes of the program together; None means `wall_s`.
        memory_bytes: resident memory of all processes of the program together, without the memory of the preloaded
            interpreter.
        processes: number of processes and threads together.
        output_bytes: size of standard output; the same limit holds separately for standard error.
        disk_bytes: size of all files in the program's scratch directory.
        files: number of files in the scratch directory.
        open_files: number of open descriptors per process.

    Raises:
        ValueError: a limit is not positive.
    """

    wall_s: float = 10.0
    cpu_s: float | None = None
    memory_bytes: int = 512 * MEBIBYTE
    processes: int = 64
    output_bytes: int = 8 * MEBIBYTE
    disk_bytes: int = 64 * MEBIBYTE
    files: int = 2048
    open_files: int = 256

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"limits.{name} must be positive, got {value!r}")

    @property
    def cpu(self) -> float:
        """Processor seconds allowed."""
        return self.wall_s if self.cpu_s is None else self.cpu_s


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """The result of one run.

    Attributes:
        status: how the run ended.
        exit_code: exit code of the program, or the negative number of a signal; None if no process ran.
        stdout, stderr: captured bytes: at most `Limits.output_bytes` of standard output, 64 KiB of standard error.
        wall_s, cpu_s: time used by the program and its descendants.
        memory_bytes: peak resident memory, including the memory of the preloaded interpreter.
        isolation: isolation of the program.
        reason: one short line for a person.
    """

    status: ProgramStatus
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    wall_s: float
    cpu_s: float
    memory_bytes: int
    isolation: Isolation
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StdinTest:
    """The program reads `stdin` and must print `stdout` (`compare.equal_text` ignores some white space).

    Attributes:
        tolerance: difference that numbers may have, absolute for small numbers and relative for large numbers; None
            means that numbers must be equal.
        any_order: the lines may come in any order.
    """

    stdin: str
    stdout: str
    tolerance: float | None = None
    any_order: bool = False


@dataclass(frozen=True, slots=True)
class CallTest:
    """The program defines `function` (at top level or as a method of `Solution`), which must return `expected`.

    Arguments and results are plain data: None, bool, int, float, complex, str, bytes, list, tuple, dict, set.
    """

    function: str
    arguments: Sequence[Any]
    expected: Any
    keywords: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    any_order: bool = False


@dataclass(frozen=True, slots=True)
class AssertTest:
    """Test code with `assert` statements, run in a separate sandbox; undefined names in it come from the program.

    Attributes:
        code: the test code. If it defines `check`, then `check(<entry_point>)` is called; otherwise methods of
            `unittest.TestCase`s and functions named `test...` are run as a test runner would.
        entry_point: the function under test, also known to the test code as `candidate`.
        setup: trusted code run before `code` (imports, helper functions).
        case: name of the only method (`Class.method`) or function of the test code to run; None means all.
    """

    code: str
    entry_point: str | None = None
    setup: str = ""
    case: str | None = None


Test = StdinTest | CallTest | AssertTest


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of one test; `passed` is True only if `status` is `OK`."""

    __test__ = False  # keeps pytest from collecting the class because of its name

    passed: bool
    status: ProgramStatus
    reason: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0
    isolation: Isolation | None = None

    @property
    def failed(self) -> bool:
        """Whether the test ran and did not pass."""
        return not self.passed and self.status is not ProgramStatus.SKIPPED


class SandboxError(RuntimeError):
    """The sandbox could not be started or was used after it was closed."""


class IsolationError(SandboxError):
    """This machine gives less isolation than the configured minimum."""
