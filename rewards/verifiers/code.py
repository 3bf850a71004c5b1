"""Verifier of code: runs the program of a completion in the sandbox, with the tests of the dataset row.

Only the text after the reasoning is read. The program is the last complete fenced block that has the right language and
defines the functions that the tests call (`rewards.programs.blocks`). The tests of a row may have the format of
HumanEval, BigCodeBench, MBPP, APPS, TACO or LiveCodeBench (`rewards.programs.tests`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards import stage, verdict
from rewards.answers.thinking import thinking_tags
from rewards.programs.assert_tests import modules_lacking, program_names, surely_called
from rewards.programs.blocks import complete_program, extract_code
from rewards.programs.golds import gold_programs
from rewards.programs.tests import read_tests
from rewards.verdict import Verdict
from sandbox import (
    AssertTest,
    CallTest,
    IsolationLevel,
    Language,
    Limits,
    ProgramStatus,
    Sandbox,
    StdinTest,
    Test,
    TestResult,
)
from sandbox.outside.languages import COMPILE_LIMITS

_MOST_NAMES = 16
_NEVER_CALLED = "no test called the program"
_USELESS_PROGRAM = "class Solution:\n    def __getattr__(self, name): return lambda *a, **k: object()\n"
# The sandboxes of this process. The key is the options of a sandbox; the value is the id of the process that made the
# sandbox, and the sandbox. Verifiers with the same options share a sandbox, so the limit of concurrent programs holds
# for all of them together. A pool makes the sandbox in the process that forks its workers, so two pools never share a
# sandbox. The sandbox is not an attribute of a verifier, because verifiers are copied between processes, and a sandbox
# cannot be copied.
_Options = tuple[IsolationLevel, tuple[str, ...], int | None]
_sandboxes: dict[_Options, tuple[int, Sandbox]] = {}
_sandboxes_lock = threading.Lock()
# Seconds that a verdict may need in addition to its tests: to start a cell, to compile C++, and to repeat the tests on
# a new worker.
_MARGIN_SECONDS = 5.0
_COMPILER_MEBIBYTES = 1024  # enough for a C++ program that includes the whole standard library
_POSITIVE = (
    "wall_s",
    "program_s",
    "memory_mib",
    "compile_s",
    "compile_memory_mib",
    "max_tests",
    "concurrent_programs",
)


@dataclass(frozen=True, slots=True)
class CodeVerifier:
    """Scores a completion by the tests that its program passes.

    Attributes:
        language: language of the program.
        partial_credit: if true, the score is the fraction of tests passed; otherwise the score is 1 if all tests pass,
            else 0.
        wall_s: limit of real time, and of processor time, for each test, in seconds.
        program_s: limit of real time for all tests together, in seconds; a program that exceeds it is `wrong`.
        memory_mib: memory limit of each test, in MiB.
        compile_s: limit of real time, and of processor time, for a compiler, in seconds.
        compile_memory_mib: memory limit of the compiler; None means `memory_mib` or 1,024, whichever is greater.
        level: weakest isolation in which programs may run.
        tolerance: greatest allowed difference of printed numbers and returned floats. For values above 1 the difference
            is relative. None means that the values must be equal.
        max_tests: greatest number of tests that run, chosen evenly from the row's tests; None means all.
        preload: modules that programs and test code can import, in addition to Python's standard library.
        concurrent_programs: number of programs that run at the same time, over all workers of a pool; None means the
            number of cores.
        solution_column: column of the row with right programs, for the check of gold answers. None means the columns
            that published data sets use; an empty text means no column.
        thinking: reasoning tags; the program is read after them (`rewards.answers.thinking.thinking_tags`).

    Raises:
        ValueError: an option is unknown or out of range.
    """

    language: Language = Language.PYTHON
    partial_credit: bool = False
    wall_s: float = 6.0
    program_s: float = 12.0
    memory_mib: int = 512
    compile_s: float = 30.0
    compile_memory_mib: int | None = None
    level: IsolationLevel = IsolationLevel.CONFINED
    tolerance: float | None = None
    max_tests: int | None = None
    preload: Sequence[str] = ("numpy",)
    concurrent_programs: int | None = None
    solution_column: str | None = None
    thinking: Sequence[str | Sequence[str]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", _language(self.language))
        object.__setattr__(self, "level", _level(self.level))
        thinking_tags(self.thinking)
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"code: {name} must be positive, got {value!r}")

    @property
    def deadline_s(self) -> float:
        """The shortest deadline of a pool, in seconds, for which a slow program is always `wrong`, never `timeout`."""
        compiling = self.compile_s if self.language is Language.CPP else 0.0
        return 2 * self.program_s + compiling + _MARGIN_SECONDS

    def prepare(self) -> None:
        """Start the sandbox in the process that forks a pool's workers, so that all workers share it.

        Raises:
            IsolationError: this machine cannot give the configured isolation.
        """
        with _sandboxes_lock:
            if self._key not in _sandboxes:
                count = self.concurrent_programs or len(os.sched_getaffinity(0))
                sandbox = Sandbox(self.level, count, self.preload, waiting=stage.waiting)
                sandbox.share()
                _sandboxes[self._key] = os.getpid(), sandbox

    def _sandbox(self) -> Sandbox:
        with _sandboxes_lock:
            maker, sandbox = _sandboxes.get(self._key, (0, None))
            if sandbox is None or not (sandbox.shared or maker == os.getpid()):
                sandbox = Sandbox(self.level, preload=self.preload, waiting=stage.waiting)
                _sandboxes[self._key] = os.getpid(), sandbox
            return sandbox

    @property
    def _key(self) -> _Options:
        return self.level, tuple(self.preload), self.concurrent_programs

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`.

        A program that fails, exceeds a limit or cheats is `wrong`, or `scored` if `partial_credit` is set and some
        tests pass. A completion without a program is `unparseable`. If the sandbox fails, a compiler is missing, or a
        test fails before it calls the program, the verdict is an `error`.

        Raises:
            ValueError: the row has no tests that can be run.
            IsolationError: this machine cannot give the configured isolation.
        """
        tests = self._tests(reference, prompt)
        code = extract_code(completion, self.language, _names(tests), thinking_tags(self.thinking))
        if code is None:
            return verdict.unparseable(f"no complete {self.language.value} block")
        chosen = _spread(tests, self.max_tests)
        results = self._grade(complete_program(code, prompt), chosen, stop_at_failure=not self.partial_credit)
        stage.enter("verdict")
        return self._verdict(results, len(chosen))

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Say why either no program or every program would pass the row's tests; empty if the tests can be used.

        If the text of the tests does not show that they call the program, the tests are run once with a useless
        program. This program has a function of every name, and the results of these functions do not equal any value.

        Raises:
            IsolationError: this machine cannot give the configured isolation.
        """
        try:
            tests = self._tests(reference, prompt)
        except ValueError as problem:
            return str(problem)
        if all(isinstance(test, StdinTest) and not test.stdout.strip() for test in tests):
            return "all expected outputs are empty: a program that does nothing passes all of its tests"
        doubtful = [test for test in tests if isinstance(test, AssertTest) and not surely_called(test)]
        results = self._grade(_USELESS_PROGRAM, doubtful, stop_at_failure=False) if doubtful else []
        bad = next((result for result in results if result.status is ProgramStatus.BAD_TEST), None)
        if bad is not None:
            return bad.reason
        if results and len(doubtful) == len(tests) and not any(result.failed for result in results):
            called = any(result.passed for result in results)
            return "a program that does nothing passes all of its tests" if called else _NEVER_CALLED
        return ""

    def _tests(self, reference: Any, prompt: Mapping[str, Any]) -> list[Test]:
        tests = read_tests(reference, prompt, self.tolerance)
        if self.language is not Language.PYTHON and not all(isinstance(test, StdinTest) for test in tests):
            raise ValueError(
                f"only Python programs can be tested by calls; {self.language.value} needs tests of inputs and outputs"
            )
        lacking = modules_lacking(prompt, tests, self.preload)
        if lacking:
            raise ValueError(
                f"this row's programs or tests need {', '.join(lacking)}, which is not in the verifier's `preload` "
                f"{list(self.preload)}; install it and add it"
            )
        return tests

    def _grade(self, program: str, tests: Sequence[Test], stop_at_failure: bool) -> list[TestResult]:
        stage.enter("running the program", elsewhere=True)
        return self._sandbox().grade(
            program,
            tests,
            Limits(wall_s=self.wall_s, memory_bytes=self.memory_mib << 20),
            self.language,
            stop_at_failure=stop_at_failure,
            total_s=self.program_s,
            compile_limits=self._compile_limits,
        )

    @property
    def _compile_limits(self) -> Limits:
        mebibytes = self.compile_memory_mib or max(_COMPILER_MEBIBYTES, self.memory_mib)
        return replace(COMPILE_LIMITS, wall_s=self.compile_s, memory_bytes=mebibytes << 20)

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """Return the row's solutions, because its reference is not an answer; None if the row has no solution."""
        return gold_programs(prompt, self.language.value, self.solution_column)

    def _verdict(self, results: Sequence[TestResult], count: int) -> Verdict:
        for number, result in enumerate(results):
            if result.status in (ProgramStatus.SANDBOX_ERROR, ProgramStatus.NO_COMPILER):
                return verdict.error(f"{result.status.value}: {result.reason}"[:300])
            if result.status is ProgramStatus.BAD_TEST:
                return verdict.error(f"test {number + 1} of {count}: {result.reason}"[:300])
        total, count = count, count - sum(result.status is ProgramStatus.SKIPPED for result in results)
        if not count:
            return verdict.error(f"{_NEVER_CALLED}: {results[0].reason}"[:300])
        passed = sum(result.passed for result in results)
        if passed == count:
            return verdict.correct(f"all {count} tests passed", tests_passed=1.0)
        number, first = next((number, result) for number, result in enumerate(results) if result.failed)
        reason = f"test {number + 1} of {total}: {first.status.value}: {first.reason}"[:300]
        if not self.partial_credit:
            return verdict.wrong(reason)
        if not passed:
            return verdict.wrong(reason, tests_passed=0.0)
        return verdict.scored(passed / count, reason, tests_passed=passed / count)


def _names(tests: Sequence[Test]) -> list[str]:
    """Names of the functions and classes that the tests call."""
    names: set[str] = set()
    for test in tests:
        names |= program_names(test) if isinstance(test, AssertTest) else set()
        names |= {test.function} if isinstance(test, CallTest) else set()
    return sorted(names)[:_MOST_NAMES]


def _language(value: Any) -> Language:
    try:
        return Language(value)
    except ValueError:
        known = ", ".join(language.value for language in Language)
        raise ValueError(f"code: language must be one of {known}, got {value!r}") from None


def _level(value: Any) -> IsolationLevel:
    if isinstance(value, IsolationLevel):
        return value
    known = {level.name.lower(): level for level in IsolationLevel}
    if value not in known:
        raise ValueError(f"code: level must be one of {', '.join(known)}, got {value!r}")
    return known[value]


def _spread(tests: Sequence[Test], most: int | None) -> list[Test]:
    if most is None or len(tests) <= most:
        return list(tests)
    return [tests[index * len(tests) // most] for index in range(most)]
