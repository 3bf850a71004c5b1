"""The code reward on rows of each dataset format, and on all of HumanEval."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from rewards.programs.tests import read_tests
from rewards.verdict import Status
from rewards.verifiers.code import CodeVerifier
from sandbox import AssertTest, CallTest, Language, StdinTest
from sandbox.types import ProgramStatus, TestResult

HUMANEVAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "humaneval.jsonl"


def fenced(code: str, tag: str = "python") -> str:
    return f"Here it is:\n```{tag}\n{code}\n```\nDone."


HUMANEVAL_ROW = {
    "prompt": 'import math\n\ndef helper(x):\n    return x + 1\n\ndef area(r):\n    """Area."""\n',
    "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(helper(1)) - 12.566370) < 1e-4\n",
}


def test_humaneval_row() -> None:
    verify = CodeVerifier()
    whole = verify(fenced("def area(r):\n    return math.pi * r * r"), "", HUMANEVAL_ROW)
    assert (whole.status, whole.score) == (Status.CORRECT, 1.0), whole
    body = verify(fenced("    return math.pi * helper(r - 1) ** 2"), "", HUMANEVAL_ROW)
    assert body.status is Status.CORRECT, body
    assert verify(fenced("def area(r):\n    return 3 * r * r"), "", HUMANEVAL_ROW).status is Status.WRONG
    assert verify("the area is pi r squared", "", HUMANEVAL_ROW).status is Status.UNPARSEABLE
    usage = fenced("print(area(2))  # an example of its use")
    shown = verify(fenced("def area(r):\n    return math.pi * r * r") + usage, "", HUMANEVAL_ROW)
    assert shown.status is Status.CORRECT, shown


def test_it_travels_to_other_nodes_after_use() -> None:
    verify = CodeVerifier(language="python", level="confined", preload=[])  # as a config gives them
    assert verify(fenced("def area(r):\n    return 0"), "", HUMANEVAL_ROW).status is Status.WRONG
    assert pickle.loads(pickle.dumps(verify)) == verify


def test_verifiers_of_one_process_share_a_sandbox_only_where_they_want_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    class Counted:
        shared = True

        def __init__(self, level: object, workers: int, *_: object, **__: object) -> None:
            made.append(workers)

        def share(self) -> None: ...

    monkeypatch.setattr("rewards.verifiers.code.Sandbox", Counted)
    monkeypatch.setattr("rewards.verifiers.code._sandboxes", {})
    python, cpp = CodeVerifier(concurrent_programs=2), CodeVerifier(language=Language.CPP, concurrent_programs=2)
    many = CodeVerifier(concurrent_programs=5)
    for verifier in (python, cpp, many):
        verifier.prepare()
    assert made == [2, 5]
    assert python._sandbox() is cpp._sandbox() is not many._sandbox()


def test_mbpp_row_with_partial_credit() -> None:
    row = {"test_list": ["assert half(4) == 2", "assert half(5) == 2.5", "assert half(0) == 0"], "test_setup_code": ""}
    assert CodeVerifier()(fenced("def half(x): return x / 2"), "", row).status is Status.CORRECT
    part = CodeVerifier(partial_credit=True)(fenced("def half(x): return x // 2"), "", row)
    assert (part.status, part.score) == (Status.SCORED, pytest.approx(2 / 3))
    assert CodeVerifier()(fenced("def half(x): return x // 2"), "", row).score == 0.0
    with_blanks = {"test_list": ["", *row["test_list"], "  "]}
    assert read_tests(None, with_blanks) == read_tests(None, row)


@pytest.mark.parametrize(
    ("outcomes", "score", "share", "partial_score"),
    [
        ("pp", 1.0, 1.0, 1.0),
        ("pf", 0.0, 0.5, 0.5),
        ("ff", 0.0, 0.0, 0.0),
        ("pfs", 0.0, 0.5, 0.5),
        ("s", None, None, None),
    ],
)
def test_a_verdict_of_tests_that_passed_failed_and_were_skipped(
    outcomes: str, score: float | None, share: float | None, partial_score: float | None
) -> None:
    statuses = {"p": ProgramStatus.OK, "f": ProgramStatus.WRONG_ANSWER, "s": ProgramStatus.SKIPPED}
    results = [TestResult(letter == "p", statuses[letter], "why") for letter in outcomes]
    whole = CodeVerifier()._verdict(results, len(results))
    part = CodeVerifier(partial_credit=True)._verdict(results, len(results))
    assert (whole.score, part.score) == (score, partial_score)
    assert part.parts.get("tests_passed") == share
    if score == 0.0:
        assert f"test {outcomes.index('f') + 1} of {len(outcomes)}" in whole.reason


def test_apps_rows() -> None:
    stdin = json.dumps({"inputs": ["1 2\n", ["3 4"]], "outputs": ["3\n", ["7"]]})
    assert CodeVerifier()(fenced("print(sum(map(int, input().split())))"), stdin, {}).status is Status.CORRECT
    calls = {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]})}
    solution = "class Solution:\n    def add(self, a, b): return a + b"
    assert CodeVerifier()(fenced(solution), None, calls).status is Status.CORRECT
    assert CodeVerifier()(fenced(solution.replace("+", "-")), None, calls).status is Status.WRONG
    assert read_tests(None, calls) == [CallTest("add", [1, 2], 3), CallTest("add", [3, 4], 7)]
    with pytest.raises(ValueError, match="2 inputs and 1 outputs"):
        read_tests({"inputs": ["1", "2"], "outputs": ["1"]}, {})
    with pytest.raises(ValueError, match="an empty list of tests"):
        read_tests({"inputs": [], "outputs": []}, {})


def test_live_code_bench_rows() -> None:
    private = [{"input": "[3, 1]\n2", "output": "[1, 3, 2]", "testtype": "functional"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(private)))).decode()
    row = {
        "public_test_cases": json.dumps([{"input": "[2]\n1", "output": "[2, 1]", "testtype": "functional"}]),
        "private_test_cases": packed,
        "metadata": json.dumps({"func_name": "f"}),
    }
    assert read_tests(None, row) == [CallTest("f", [[2], 1], [2, 1]), CallTest("f", [[3, 1], 2], [1, 3, 2])]
    assert CodeVerifier()(fenced("def f(a, b): return sorted(a) + [b]"), None, row).status is Status.CORRECT
    stdin = {"public_test_cases": [{"input": "5", "output": "25", "testtype": "stdin"}], "private_test_cases": []}
    assert read_tests(None, stdin) == [StdinTest("5", "25")]


@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        (os.system, "a pickle with .*GLOBAL; only a pickled text is read"),
        (["[]", "[]"], "a pickle with EMPTY_LIST; only"),
        ("[1]", "must hold a list of objects with input and output, got .1."),
        ([], "a pickle with EMPTY_LIST"),
        ("[", "must hold a list of objects with input and output, got '.'"),
    ],
)
def test_a_pickle_of_private_tests_is_read_and_never_run(hostile: object, told: str) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(hostile))).decode()
    with pytest.raises(ValueError, match=told):
        read_tests(None, {"private_test_cases": packed, "metadata": "{}"})


def test_damaged_private_tests_are_told() -> None:
    empty, cut = zlib.compress(b""), zlib.compress(pickle.dumps("[]")[:-1])
    for packed in ("x", *(base64.b64encode(content).decode() for content in (b"no zlib", empty, cut))):
        with pytest.raises(ValueError, match=r"private_test_cases cannot be unpacked \(.*download the row again"):
            read_tests(None, {"private_test_cases": packed})
    protocols = {base64.b64encode(zlib.compress(pickle.dumps("[]", protocol))).decode() for protocol in range(6)}
    for packed in protocols:
        with pytest.raises(ValueError, match="no code tests in this row"):
            read_tests(None, {"private_test_cases": packed})


def test_a_row_without_tests_is_the_users_mistake() -> None:
    with pytest.raises(ValueError, match=r"test_list.*\['question'\]"):
        read_tests("42", {"question": "?"})


def test_a_programs_own_failures_are_wrong() -> None:
    row = {"inputs": ["1"], "outputs": ["1"]}
    verify = CodeVerifier(wall_s=0.5)
    for code in (
        "while True: pass",
        "import os; os.kill(os.getpid(), 9)",
        "x = b'x' * (3 << 30)",
        "1 / 0",
        "print('1'",
    ):
        assert verify(fenced(code), row, {}).status is Status.WRONG


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sandbox.outside.languages

    monkeypatch.setattr(sandbox.outside.languages, "find_tool", lambda name: None)
    result = CodeVerifier(language=Language.CPP)(fenced("int main() {}", "cpp"), {"inputs": [""], "outputs": [""]}, {})
    assert result.status is Status.ERROR
    assert result.score is None


def test_the_compiler_has_limits_of_its_own() -> None:
    verify = CodeVerifier(language=Language.CPP, memory_mib=64)
    assert (verify._compile_limits.wall_s, verify._compile_limits.memory_bytes) == (30.0, 1024 << 20)
    assert CodeVerifier(memory_mib=2048)._compile_limits.memory_bytes == 2048 << 20
    assert CodeVerifier(language=Language.CPP, compile_s=9).deadline_s == verify.deadline_s - 21
    with pytest.raises(ValueError, match="compile_memory_mib must be positive"):
        CodeVerifier(compile_memory_mib=-1)
    source = "template <int n> struct A { A<n + 1> *a; int v = sizeof(A<n + 1>); }; int main() { return A<0>().v; }"
    bomb = CodeVerifier(language=Language.CPP, compile_s=0.1)(
        fenced("#include <map>\n" + source, "cpp"), {"inputs": [""], "outputs": [""]}, {}
    )
    if "no compiler" in bomb.reason:
        pytest.skip(bomb.reason)
    assert bomb.status is Status.WRONG and "compile error" in bomb.reason, bomb


def test_picklable_and_named_tests_only() -> None:
    verify = pickle.loads(pickle.dumps(CodeVerifier(max_tests=2)))
    row = {"inputs": [str(n) for n in range(10)], "outputs": ["0", "x", "x", "x", "x", "5", "x", "x", "x", "x"]}
    assert verify(fenced("print(input())"), row, {}).status is Status.CORRECT  # of ten, the first and the sixth


def humaneval() -> list[dict[str, Any]]:
    if not HUMANEVAL.exists():
        pytest.skip("HumanEval is not there")
    return [json.loads(line) for line in HUMANEVAL.read_text().splitlines()]


def test_humaneval_canonical_solutions_pass_and_empty_bodies_do_not() -> None:
    verify = CodeVerifier()
    rows = humaneval()
    verdicts = [verify(fenced(row["prompt"] + row["canonical_solution"]), "", row) for row in rows]
    assert [(row["task_id"], v) for row, v in zip(rows, verdicts, strict=True) if v.status is not Status.CORRECT] == []
    assert [row["task_id"] for row in rows if verify.reference_problem("", row)] == []
    empty = [verify(fenced(row["prompt"] + "    pass\n"), "", row) for row in rows]
    assert [row["task_id"] for row, v in zip(rows, empty, strict=True) if v.status is not Status.WRONG] == []
    assert len(rows) == 164


def test_every_humaneval_row_is_one_assert_test() -> None:
    for row in humaneval():
        (test,) = read_tests("", row)
        assert isinstance(test, AssertTest)
        assert test.setup == row["prompt"]
