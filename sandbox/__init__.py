"""Run untrusted programs: thousands per training step, without a server, a container image, root or a key.

    with Sandbox(level=IsolationLevel.FULL, workers=2) as sandbox:
        result = sandbox.run("print(input()[::-1])", "abc")
        tests = [StdinTest("abc", "cba"), StdinTest("", "")]
        verdicts = sandbox.grade("print(input()[::-1])", tests, Limits(wall_s=2))

These layers isolate a program: a separate user (if the supervisor is root); user, process, mount, network and IPC
namespaces with a private read-only root and a size-limited scratch directory; Landlock; a system-call allow-list;
resource limits; no capabilities; no inherited descriptors; a clean environment; and all its processes are killed at the
deadline. Each worker prepares the layers once, and each run applies the layers in a few system calls.
`Sandbox.isolation` names the layers that this machine lacks. If the machine gives less isolation than the configured
level, no program runs.

Not covered: flaws of the kernel; side channels (timing, caches, load, the access times of shared read-only files); a
program that stays within its own limits but slows down other programs; memory that a program allocates between two
checks by `sandbox/inside/watch.py`, if there is no control group. `bounds` says which limits are strict. Programs can
see the load of other programs, and the machine's processor type, memory size and kernel version.
"""

from sandbox.bounds import LimitHold, bounds
from sandbox.outside.service import Sandbox
from sandbox.types import (
    AssertTest,
    CallTest,
    ExecutionResult,
    Isolation,
    IsolationError,
    IsolationLevel,
    Language,
    Layer,
    Limits,
    MissingLayer,
    ProgramStatus,
    SandboxError,
    StdinTest,
    Test,
    TestResult,
)
from sandbox.visible import readable_by_programs

__all__ = [
    "AssertTest",
    "CallTest",
    "ExecutionResult",
    "Isolation",
    "IsolationError",
    "IsolationLevel",
    "Language",
    "Layer",
    "LimitHold",
    "Limits",
    "MissingLayer",
    "ProgramStatus",
    "Sandbox",
    "SandboxError",
    "StdinTest",
    "Test",
    "TestResult",
    "bounds",
    "readable_by_programs",
]
