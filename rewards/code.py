"""Code reward: run the program of a completion against the dataset row's tests in the sandbox.

The program is the last complete fenced block of the right language after the reasoning. The tests are read from the row
in the formats of HumanEval, MBPP, APPS and TACO (`input_output`), and LiveCodeBench; see `code_tests.read_tests`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards import stage, verdict
from rewards.code_golds import gold_programs
from rewards.code_tests import read_tests
from rewards.find import after_thinking
from rewards.verdict import Verdict
from sandbox import IsolationLevel, Language, Limits, Sandbox, Status, Test, TestResult

_ALIASES = {
    Language.PYTHON: {"python", "py", "python3"},
    Language.CPP: {"cpp", "c++", "cc", "cxx"},
    Language.JAVASCRIPT: {"javascript", "js", "node"},
    Language.BASH: {"bash", "sh", "shell"},
}
_FENCE = re.compile(r" {0,3}(`{3,}+|~{3,}+)[ \t]*+([^\s`{]*+)[^`]*+\Z")

# A sandbox, and who made it, for each isolation level and set of preloaded modules: shared with a pool's workers, which
# are forked from this process, or else (verifiers are copied between processes, sandboxes cannot be) one per process.
_sandboxes: dict[tuple[IsolationLevel, tuple[str, ...]], tuple[int, Sandbox]] = {}
_sandboxes_lock = threading.Lock()
# Beside the tests, a verdict may have to wait for a program before it, start a cell and, in C++, compile.
_MARGIN_SECONDS, _COMPILING_SECONDS = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class CodeVerifier:
    """Scores a completion by its program's tests.

    Attributes:
        language: what the program must be written in.
        partial_credit: score the fraction of tests passed instead of all or nothing.
        wall_seconds: real and processor time of each test.
        program_seconds: real time of all tests together; a program that uses it up is `wrong`.
        memory_mebibytes: memory of each test.
        level: the weakest isolation at which programs may run.
        tolerance: where given, printed numbers and returned floats may differ by this much, relative above 1.
        max_tests: run only so many tests of a row, evenly spread over it; None runs all.
        preload: modules kept imported for the programs that mention them.
        concurrent_programs: how many run at the same time, for all workers of a pool; None takes one for each core.
        solution_column: the rows' column with right programs, for the check of gold answers; None looks for those that
            published data sets have, the empty text for none.

    Raises:
        ValueError: an option that is not one, or out of range.
    """

    language: Language = Language.PYTHON
    partial_credit: bool = False
    wall_seconds: float = 6.0
    program_seconds: float = 12.0
    memory_mebibytes: int = 512
    level: IsolationLevel = IsolationLevel.CONFINED
    tolerance: float | None = None
    max_tests: int | None = None
    preload: Sequence[str] = ("numpy",)
    concurrent_programs: int | None = None
    solution_column: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", _language(self.language))
        object.__setattr__(self, "level", _level(self.level))
        for name in ("wall_seconds", "program_seconds", "memory_mebibytes", "max_tests", "concurrent_programs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"code: {name} must be positive, got {value!r}")

    @property
    def deadline_seconds(self) -> float:
        """The shortest deadline of a pool under which every program's timeout is its own: `wrong`, not `timeout`."""
        compiling = _COMPILING_SECONDS if self.language is Language.CPP else 0.0
        return 2 * self.program_seconds + compiling + _MARGIN_SECONDS

    def prepare(self) -> None:
        """Start the sandbox in the process that a pool's workers are forked from, for all of them to use.

        Raises:
            IsolationError: this machine cannot give the configured isolation.
        """
        with _sandboxes_lock:
            if self._key not in _sandboxes:
                count = self.concurrent_programs or len(os.sched_getaffinity(0))
                sandbox = Sandbox(self.level, count, self.preload)
                sandbox.share()
                _sandboxes[self._key] = os.getpid(), sandbox

    def _sandbox(self) -> Sandbox:
        with _sandboxes_lock:
            maker, sandbox = _sandboxes.get(self._key, (0, None))
            if sandbox is None or not (sandbox.shared or maker == os.getpid()):
                sandbox = Sandbox(self.level, preload=self.preload)
                _sandboxes[self._key] = os.getpid(), sandbox
            return sandbox

    @property
    def _key(self) -> tuple[IsolationLevel, tuple[str, ...]]:
        return self.level, tuple(self.preload)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`.

        A program that fails, runs out of a limit or cheats is `wrong`, and `scored` where part of its tests earns
        `partial_credit`; no program is `unparseable`; a failure of the
        sandbox, or a missing compiler, is `error`.

        Raises:
            ValueError: the row has no tests in any known format.
            IsolationError: this machine cannot give the configured isolation.
        """
        tests = read_tests(reference, prompt, self.tolerance)
        code = extract_code(completion, self.language)
        if code is None:
            return verdict.unparseable(f"no complete {self.language.value} block")
        chosen = _spread(tests, self.max_tests)
        stage.enter("running the program", elsewhere=True)
        limits = Limits(wall_seconds=self.wall_seconds, memory_bytes=self.memory_mebibytes << 20)
        results = self._sandbox().grade(
            complete_program(code, prompt),
            chosen,
            limits,
            self.language,
            stop_at_failure=not self.partial_credit,
            total_seconds=self.program_seconds,
        )
        stage.enter("verdict")
        return self._verdict(results, len(chosen))

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """The row's solutions, as its reference is no answer; None where it has none."""
        return gold_programs(prompt, self.language.value, self.solution_column)

    def _verdict(self, results: Sequence[TestResult], count: int) -> Verdict:
        for result in results:
            if result.status in (Status.SANDBOX_ERROR, Status.NO_COMPILER):
                return verdict.error(f"{result.status.value}: {result.reason}"[:300])
        passed = sum(result.passed for result in results)
        if passed == count:
            return verdict.correct(f"all {count} tests passed", tests_passed=1.0)
        number, first = next((number, result) for number, result in enumerate(results) if not result.passed)
        reason = f"test {number + 1} of {count}: {first.status.value}: {first.reason}"[:300]
        if not self.partial_credit:
            return verdict.wrong(reason)
        if not passed:
            return verdict.wrong(reason, tests_passed=0.0)
        return verdict.scored(passed / count, reason, tests_passed=passed / count)


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


def extract_code(completion: str, language: Language) -> str | None:
    """The last complete fenced block of `language`, or the last without a language; None where there is neither.

    What stands before the end of the reasoning (`</think>`) is not looked at, and reasoning that never ended has no
    program. A block that is not closed is no block:
    the completion was cut off.
    """
    text = after_thinking(completion)
    if text is None:
        return None
    tagged = untagged = None
    fence, tag, lines = "", "", list[str]()
    for line in text.splitlines():
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence, tag, lines = match.group(1), match.group(2).lower(), []
        elif match and match.group(1)[0] == fence[0] and len(match.group(1)) >= len(fence) and not match.group(2):
            block = "\n".join(lines) + "\n"
            if tag in _ALIASES[language]:
                tagged = block
            elif not tag:
                untagged = block
            fence = ""
        else:
            lines.append(line)
    return tagged if tagged is not None else untagged


def complete_program(code: str, row: Mapping[str, Any]) -> str:
    """The program to run: `code`, with what a HumanEval row's prompt provides before the function under test.

    A block that does not define the function is taken for its body and put after the prompt.
    """
    stub, entry = row.get("prompt"), row.get("entry_point")
    if not isinstance(stub, str) or not isinstance(entry, str):
        return code
    definition = re.compile(rf"^[ \t]*(async[ \t]+)?def[ \t]+{re.escape(entry)}\b", re.MULTILINE)
    start = definition.search(stub)
    if start is None:
        return code
    return stub[: start.start()] + "\n" + code if definition.search(code) else stub + code
