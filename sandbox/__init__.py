"""Running untrusted programs: thousands per training step, without a server, a container image, root or a key.

    with Sandbox(level=IsolationLevel.FULL, workers=2) as sandbox:
        result = sandbox.run("print(input()[::-1])", "abc")
        tests = [StdinTest("abc", "cba"), StdinTest("", "")]
        verdicts = sandbox.grade("print(input()[::-1])", tests, Limits(wall_seconds=2))

What holds a program, prepared once per worker and applied in a few system calls per run: a user of its own (where the
supervisor is root), user, process, mount, network and IPC namespaces with a private read-only root and a size-limited
scratch directory, Landlock, a system-call allow-list, resource limits, no capabilities, no inherited descriptors, a
clean environment, and the death of all its processes at the deadline. What this machine cannot give is named in
`Sandbox.isolation`; below the configured level nothing is run.

What is not covered: a flaw in the kernel itself; side channels (timing, caches, load, the access times of shared
read-only files); a program slowing down its neighbours within its limits; where there is no control group, memory that
a program gains between two looks of the watch. `bounds` says of each limit whether it is a bound. Programs are not
hidden from each other's *load*, and they can see the machine's processor type, memory size and kernel version.
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
