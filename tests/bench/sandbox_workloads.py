"""Programs per second at the isolation in force, beside a fresh `python -I` for each test, in the same run.

The fresh interpreter is that of a bare virtual environment made for the purpose, with the interpreter that programs run
in: the `.pth` files of an environment in use can more than double the time that its interpreter takes to start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import resource
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from sandbox.outside.service import Sandbox
from sandbox.types import CallTest, Limits, StdinTest, Test

_LIMITS = Limits(wall_s=10.0)
_SLICES = 4
_LOOKS = 20  # at processor times, while processes come and go
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
    processor_ms: float
    fresh_processor_ms: float
    target: float

    @property
    def ratio(self) -> float:
        """How many times as many programs a second as with a fresh interpreter for each."""
        return self.programs_per_second / self.fresh_per_second

    @property
    def processor_ratio(self) -> float:
        """The same in processor time, which neighbours on a busy machine disturb less."""
        return self.fresh_processor_ms / self.processor_ms


WORKLOADS = (
    Workload("one small stdin test", _SUM, [StdinTest("1 2 3", "6")], 2.5),
    Workload("ten stdin tests", _SUM, [StdinTest(f"1 2 {n}", str(3 + n)) for n in range(10)], 8.0),
    Workload(
        "ten function calls", _SORT, [CallTest("ordered", [[n, 2, 1]], sorted([n, 2, 1])) for n in range(10)], 30.0
    ),
    Workload("numpy", _NUMPY, [StdinTest("1 2 3", "6")], 15.0),
)


def measure(workload: Workload, sandbox: Sandbox, threads: int, seconds: float, interpreter: Path) -> Figures:
    """Run a workload for about `seconds`, half in the sandbox and half in fresh interpreters, in alternating slices."""

    def sandboxed() -> None:
        results = sandbox.grade(workload.program, workload.tests, _LIMITS)
        assert all(result.passed for result in results), results

    def fresh() -> None:
        for test in workload.tests:
            _fresh_interpreter(interpreter, workload.program, test)

    for _ in range(threads):
        sandboxed()
    fresh()
    times: list[float] = []
    ours = theirs = our_processor = their_processor = 0.0
    their_count = 0
    # Slices, so that a neighbour's burst of load falls on both.
    for _ in range(_SLICES):
        before = _processor_s(sandbox)
        slice_times, elapsed = _for_a_while(sandboxed, threads, seconds / (2 * _SLICES))
        our_processor += _processor_s(sandbox) - before
        times += slice_times
        ours += elapsed
        before = time.process_time() + _children_s()
        fresh_times, elapsed = _for_a_while(fresh, threads, seconds / (2 * _SLICES))
        their_processor += time.process_time() + _children_s() - before
        their_count += len(fresh_times)
        theirs += elapsed
    times.sort()
    return Figures(
        name=workload.name,
        programs_per_second=len(times) / ours,
        median_ms=statistics.median(times) * 1e3,
        p99_ms=times[int(len(times) * 0.99)] * 1e3,
        fresh_per_second=their_count / theirs,
        processor_ms=our_processor / len(times) * 1e3,
        fresh_processor_ms=their_processor / their_count * 1e3,
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


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processor_s(sandbox: Sandbox) -> float:
    """Of this process, and of the sandbox's workers with all that they have run."""
    for _ in range(_LOOKS):
        total = time.process_time()
        try:
            for pid in sandbox.worker_pids:
                worker = psutil.Process(pid)
                for process in (worker, *worker.children(recursive=True)):
                    used = process.cpu_times()
                    total += used.user + used.system + used.children_user + used.children_system
            return total
        except psutil.NoSuchProcess:
            continue  # the last program's template has just ended; its time is in its parent's now
    raise RuntimeError(f"the workers' processor time could not be read {_LOOKS} times in a row; is a worker gone?")


@contextlib.contextmanager
def bare_interpreter() -> Iterator[Path]:
    """The interpreter of a virtual environment that holds nothing, but numpy where there is one; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as folder:
        venv.create(folder, symlinks=True)
        found = importlib.util.find_spec("numpy")
        if found is not None and found.origin is not None:
            (places,) = Path(folder).glob("lib/python*/site-packages")
            package = Path(found.origin).parent
            for path in (package, package.with_name("numpy.libs")):
                if path.is_dir():
                    (places / path.name).symlink_to(path)
        yield Path(folder) / "bin" / "python"


def _fresh_interpreter(interpreter: Path, program: str, test: Test) -> None:
    if isinstance(test, CallTest):
        command = [str(interpreter), "-I", "-c", _CALL_HARNESS, program]
        given, expected = json.dumps(test.arguments), json.dumps(test.expected)
    else:
        assert isinstance(test, StdinTest)
        command = [str(interpreter), "-I", "-c", program]
        given, expected = test.stdin, test.stdout
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == expected, done


def run(workers: int, seconds: float) -> list[Figures]:
    """Measure every workload; prints nothing."""
    with Sandbox(workers=workers) as sandbox, bare_interpreter() as interpreter:
        return [measure(workload, sandbox, workers, seconds, interpreter) for workload in WORKLOADS]
