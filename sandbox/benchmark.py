"""Programs per second at the isolation in force, beside a fresh `python -I` for each test, in the same run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sandbox.service import Sandbox
from sandbox.types import CallTest, Limits, StdinTest, Test

_LIMITS = Limits(wall_seconds=10.0)
_SUM = "print(sum(map(int, input().split())))"
_SORT = "def ordered(values):\n    return sorted(values)\n"
_NUMPY = "import numpy as np\nprint(int(np.array(input().split(), dtype=int).sum()))"
# What a grader without a sandbox runs for one call: load the program, read the arguments, print the result.
_CALL_HARNESS = """
import json, sys
scope = {}
exec(sys.argv[1], scope)
print(json.dumps(scope["ordered"](*json.load(sys.stdin))))
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of program: its tests, and the figure to reach against fresh interpreters."""

    name: str
    program: str
    tests: Sequence[Test]
    target: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one workload; times in milliseconds for one program with all its tests."""

    name: str
    programs_per_second: float
    median_ms: float
    p99_ms: float
    fresh_per_second: float
    target: float

    @property
    def ratio(self) -> float:
        return self.programs_per_second / self.fresh_per_second

    def __str__(self) -> str:
        return (
            f"{self.name:22} {self.programs_per_second:7.1f}/s   p50 {self.median_ms:6.2f}   p99 {self.p99_ms:6.2f} ms"
            f"   fresh python -I {self.fresh_per_second:6.2f}/s   ratio {self.ratio:5.1f} (target {self.target:g})"
        )


WORKLOADS = (
    Workload("one small stdin test", _SUM, [StdinTest("1 2 3", "6")], 2.5),
    Workload("ten stdin tests", _SUM, [StdinTest(f"1 2 {n}", str(3 + n)) for n in range(10)], 8.0),
    Workload(
        "ten function calls", _SORT, [CallTest("ordered", [[n, 2, 1]], sorted([n, 2, 1])) for n in range(10)], 30.0
    ),
    Workload("numpy", _NUMPY, [StdinTest("1 2 3", "6")], 15.0),
)


def measure(workload: Workload, sandbox: Sandbox, threads: int, seconds: float) -> Figures:
    """Run a workload for about `seconds` in the sandbox and as long in fresh interpreters, in alternating slices."""

    def sandboxed() -> None:
        results = sandbox.grade(workload.program, workload.tests, _LIMITS)
        assert all(result.passed for result in results), results

    def fresh() -> None:
        for test in workload.tests:
            _fresh_interpreter(workload.program, test)

    for _ in range(threads):
        sandboxed()
    fresh()
    times: list[float] = []
    ours = theirs = 0.0
    their_count = 0
    # Slices, so that a neighbour's burst of load falls on both.
    for _ in range(4):
        slice_times, elapsed = _for_a_while(sandboxed, threads, seconds / 4)
        times += slice_times
        ours += elapsed
        fresh_times, elapsed = _for_a_while(fresh, threads, seconds / 4)
        their_count += len(fresh_times)
        theirs += elapsed
    times.sort()
    return Figures(
        name=workload.name,
        programs_per_second=len(times) / ours,
        median_ms=statistics.median(times) * 1e3,
        p99_ms=times[int(len(times) * 0.99)] * 1e3,
        fresh_per_second=their_count / theirs,
        target=workload.target,
    )


def _for_a_while(work: Callable[[], None], threads: int, seconds: float) -> tuple[list[float], float]:
    """Repeat `work` on each thread; the time of each repetition, and the time of all."""
    started = time.perf_counter()

    def repeat() -> list[float]:
        times: list[float] = []
        while time.perf_counter() - started < seconds or not times:
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return times

    with ThreadPoolExecutor(threads) as pool:
        collected = [times for future in [pool.submit(repeat) for _ in range(threads)] for times in future.result()]
    return collected, time.perf_counter() - started


def _fresh_interpreter(program: str, test: Test) -> None:
    if isinstance(test, CallTest):
        command = [sys.executable, "-I", "-c", _CALL_HARNESS, program]
        given, expected = json.dumps(test.arguments), json.dumps(test.expected)
    else:
        assert isinstance(test, StdinTest)
        command = [sys.executable, "-I", "-c", program]
        given, expected = test.stdin, test.stdout
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == expected, done


def run(workers: int, seconds: float) -> list[Figures]:
    """Measure every workload; prints nothing."""
    with Sandbox(workers=workers) as sandbox:
        return [measure(workload, sandbox, workers, seconds) for workload in WORKLOADS]
