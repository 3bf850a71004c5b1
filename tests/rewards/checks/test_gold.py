"""The check of gold answers, with verifiers that are sound, and with such as are not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from gold_judge_here import one_by_one

from rewards.adapt import Adapted
from rewards.build import VerifierSpec
from rewards.checks.gold import GoldReport, Offender, check_gold
from rewards.checks.gold_forms import FORMS, GoldRow, answers_of, scramble
from rewards.checks.gold_judges import through
from rewards.checks.gold_questions import questioned
from rewards.checks.references import check_references
from rewards.pool import VerifierPool
from rewards.programs.golds import gold_programs
from rewards.verdict import Verdict, correct, error, wrong
from rewards.verifiers.exact import Exact
from rewards.verifiers.math import Math
from rewards.verifiers.numeric import Numeric

RIGHT = {True: correct(), False: wrong()}
NUMBERS = [GoldRow(str(number), name=f"row {number}") for number in range(300)]


def test_it_tells_what_does_not_verify() -> None:
    rows = [GoldRow("5", name="a"), GoldRow("1 2", name="b"), GoldRow("\\text{yes}", name="c"), GoldRow("", name="d")]
    report = check_gold(one_by_one(Math()), rows)
    assert (report.rows, report.accepted) == (4, 3)
    assert [each.row.name for each in report.refused] == ["d"]
    assert [row.name for row, _ in report.first_unreadable] == ["b", "d"] and report.unreadable == 2
    assert report.scrambled == 3 and report.scrambled_accepted == 0
    # The empty reference is `error` in every form.
    assert report.failed == len(FORMS)
    assert not report.sound


def test_it_finds_a_verifier_that_accepts_everything() -> None:
    report = check_gold(one_by_one(lambda completion, reference, prompt: correct()), NUMBERS)
    assert report.accepted == 300 and report.scrambled == report.scrambled_accepted == 300
    assert len(report.fooled) == 10 and not report.sound


def test_another_rows_answer_is_one_that_differs() -> None:
    """Equal answers in another writing are not held against the verifier, unless it is all that there is."""
    asked: list[tuple[str, str]] = []

    def note(completion, reference, prompt):
        asked.append((completion, reference))
        return correct() if completion == FORMS[0](reference) else wrong()

    rows = [GoldRow(text) for text in ("0.5", "1/2", ".50", "7")] * 5
    report = check_gold(one_by_one(note), rows)
    assert report.sound and report.scrambled == 20
    others = asked[20:]
    assert {completion for completion, reference in others if reference == "7"} <= {
        FORMS[0](text) for text in ("0.5", "1/2", ".50")
    }
    drawn = [completion for completion, reference in others if reference != "7"]
    assert drawn.count(FORMS[0]("7")) >= 10
    assert FORMS[0]("0.5") not in drawn and FORMS[0](".50") not in drawn


@pytest.mark.parametrize(
    ("verifier", "references"),
    [
        (Exact(), ["Paris", "Rome", ["Berlin", "Berlin, Germany"]]),
        (Numeric(["hash"]), ["7", "3 + 5 = 8\n#### 8", "1,234"]),
        (Numeric(["answer_tag"]), ["7", "8"]),
        (lambda completion, reference, prompt: RIGHT[completion.split()[-1] == reference], ["7", "8"]),
        (lambda completion, reference, prompt: RIGHT[completion == reference], ["a b", "c"]),
    ],
)  # fmt: skip
def test_an_answer_is_stated_so_that_the_verifier_reads_it(verifier, references) -> None:
    report = check_gold(one_by_one(verifier), [GoldRow(reference) for reference in references], mathematical=False)
    assert report.sound, report
    assert report.scrambled == len(references)


def test_a_verifier_that_no_answer_satisfies_is_not_asked_for_ever() -> None:
    asked = []

    def never(completion, reference, prompt):
        asked.append(reference)
        return wrong()

    report = check_gold(one_by_one(never), NUMBERS * 10)
    assert "none of the first 256" in report.stopped and report.accepted == 0 and not report.sound
    assert len(asked) == 256 * len(FORMS)


def hang_on_7(completion: str, reference: str) -> bool:
    if reference.endswith("7"):
        time.sleep(60)
    return reference in completion


def slow(completion: str, reference: str) -> bool:
    time.sleep(0.2)
    return True


def test_a_verifier_that_hangs_does_not_hang_the_check() -> None:
    with VerifierPool(questioned([VerifierSpec("it", f"{__file__}:hang_on_7")]), workers=2, deadline_s=0.5) as pool:
        begun = time.monotonic()
        report = check_gold(through(pool, most_killed=3), [GoldRow(r.reference, verifier="it") for r in NUMBERS])
        assert time.monotonic() - begun < 20
    assert "hung until their deadline" in report.stopped and not report.sound


def test_a_verifier_that_is_slow_does_not_hold_up_the_check_for_ever() -> None:
    with VerifierPool(questioned([VerifierSpec("it", f"{__file__}:slow")]), workers=1) as pool:
        report = check_gold(through(pool, most_s=1.0), [GoldRow(r.reference, verifier="it") for r in NUMBERS])
    assert "longer than 1 s" in report.stopped and report.rows == 0


def test_what_answers_a_reference() -> None:
    assert answers_of(8.0) == answers_of("8") == answers_of("3 + 5 = 8\n#### 8") == ["8"]
    assert answers_of(["a", "b"]) == ["a, b", "a"]
    assert answers_of([]) == ["", ""]


@pytest.mark.parametrize("answer", ["42", "\\frac{14}{3}", "\\text{Evelyn}", "x^2", "(C)", "0.5", "\\pi"])
def test_a_scrambled_answer_is_another_one(answer) -> None:
    for seed in range(20):
        other = scramble(answer, random.Random(seed))
        assert other is None if answer == "\\pi" else other != answer and len(other) == len(answer)


class Knowing:
    """A verifier that knows its references: a text in capitals, in which `!` is the only other character."""

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        return RIGHT[completion == f"say {reference}"]

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        if reference == "HANG":
            time.sleep(60)
        if not isinstance(reference, str) or reference.isupper() != prompt.get("capitals", True):
            return f"no text in capitals: {reference!r:.40}"
        return "" if reference.isalpha() else {"!": "an exclamation"}[reference[-1]]

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        if reference == "TESTS":
            return None
        return ["a first try", f"say {reference}"] if reference != "FIRST" else ["say FIRST"]


def rows_of(references: list[Any], **prompt: Any) -> list[GoldRow]:
    return [GoldRow(reference, prompt, f"row {at}", "it") for at, reference in enumerate(references)]


@pytest.fixture(scope="module")
def knowing_pool() -> Iterator[VerifierPool]:
    with VerifierPool(questioned([VerifierSpec("it", f"{__file__}:Knowing")]), workers=2, deadline_s=1.0) as pool:
        yield pool


def test_references_that_cannot_be_used_are_named_whatever_they_are(knowing_pool: VerifierPool) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    bad = ["abc", None, 12345, deep, "A!", "A?", "HANG", {"a": [1]}, "\ud800"]
    report = check_references(knowing_pool, rows_of(["FIRST", *bad, "SECOND"]))
    assert (report.rows, report.stopped) == (11, "")
    told = {each.row.name: each.problem for each in report.unusable}
    assert list(told) == [f"row {at}" for at in range(1, 10)]
    assert told["row 1"] == "no text in capitals: 'abc'" and told["row 5"] == "an exclamation"
    assert "nested in too many lists" in told["row 4"] and "KeyError" in told["row 6"] and "timeout" in told["row 7"]
    assert all(str(each).isprintable() for each in report.unusable) and report.share == pytest.approx(9 / 11)
    # The row's columns are looked at, and a row that two verifiers judge counts once.
    rows = rows_of(["abc", "ABC"], capitals=False)
    assert [each.row.name for each in check_references(knowing_pool, [*rows, *rows]).unusable] == ["row 1"]


def test_many_references_that_hang_do_not_hang_the_look(knowing_pool: VerifierPool) -> None:
    begun = time.monotonic()
    report = check_references(knowing_pool, rows_of(["HANG"] * 200), most_killed=3)
    assert time.monotonic() - begun < 100 and "hung" in report.stopped and 0 < report.rows < 150


def test_a_verifier_without_the_method_knows_no_bad_reference() -> None:
    with VerifierPool(questioned([VerifierSpec("it", f"{__file__}:slow")]), workers=1) as pool:
        report = check_references(pool, rows_of(["a", None]))
    assert (report.rows, report.unusable) == (2, ())


def test_a_verifier_that_makes_its_gold_completions_is_asked_for_them(knowing_pool: VerifierPool) -> None:
    rows = rows_of(["FIRST", "SECOND", "TESTS", "THIRD"])
    for judge in (one_by_one(Knowing()), through(knowing_pool)):
        report = check_gold(judge, rows, mathematical=False)
        assert (report.rows, report.no_answer, report.tried, report.accepted) == (4, 1, 3, 3)
        assert report.sound and report.scrambled_accepted == 0 < report.scrambled and not report.failure
    report = check_gold(one_by_one(Knowing()), rows_of(["TESTS"] * 3), mathematical=False)
    assert report.sound and report.tried == 0 and not report.failure


def grades(completion: str, reference: str) -> float:
    return 0.5 * completion.endswith(reference)


def counts(completion: str, reference: str, prompt: Mapping[str, Any]) -> bool:
    return reference in completion and 0 < prompt["completion_tokens"] <= 30


def test_a_gold_answer_has_its_own_length_whatever_the_row_says() -> None:
    rows = [GoldRow("4", {"completion_tokens": 10**6})]
    assert check_gold(one_by_one(Adapted(counts)), rows, mathematical=False).accepted == 1


def raises(completion: str, reference: str) -> bool:
    raise KeyError("planted")


@pytest.mark.parametrize(
    ("use", "references", "failure"),
    [
        ("raises", ["1"] * 9, "none of 9 verdicts on gold answers said anything about the answer (the first: KeyError"),
        ("hang_on_7", ["7"] * 9, "none of "),
        ("hang_on_7", ["7", "8"], ""),
        ("math", ["1 2", "3 4"], "none of 2 gold answers can be read as mathematics"),
        ("math", ["1 2", "12"], ""),
        ("numeric", ["#### 5", "many"], ""),
        (
            "numeric",
            ["few", "many"],
            "none of 2 verdicts on gold answers said anything about the answer (the first: the ",
        ),
        ("length", ["1"] * 9, ""),
        ("counts", ["1"] * 9, ""),
        # A grade is no claim: it may be all that a right answer earns.
        ("grades", ["1"] * 9, ""),
    ],
)
def test_gold_answers_none_of_which_is_right_are_a_failure(use: str, references: list[str], failure: str) -> None:
    options = {"limit": 5, "buffer": 2} if use == "length" else {}
    spec = VerifierSpec("it", use if use in ("math", "numeric", "length") else f"{__file__}:{use}", options)
    with VerifierPool(questioned([spec]), workers=2, deadline_s=0.4) as pool:
        report = check_gold(through(pool, most_killed=3), rows_of([*references]), mathematical=use == "math")
    assert report.failure.startswith(failure) if failure else not report.failure, report


HOSTILE: list[Any] = [
    "\ud800", None, {}, {"a": [1, {"b": None}]}, [], [[[]]], [None], "", 10**5000, True, b"bytes", "\x1b[31m",
    float("nan"), "(" * 50_000, "\\frac{" * 5000, "9" * 10_000, ["a"] * 50_000, "1," * 50_000, "x" * 1_000_000,
    "\\begin{cases}" * 50,
]  # fmt: skip


@pytest.mark.parametrize("use", ["math", "numeric", "exact", "choice", "ordered_list"])
def test_no_gold_answer_whatever_it_is_ends_the_check(use: str) -> None:
    rows = [GoldRow(gold, {"problem": "?"}, f"row {at}", use) for at, gold in enumerate(HOSTILE)]
    with VerifierPool(questioned([VerifierSpec(use, use)]), workers=2) as pool:
        assert check_references(pool, rows).rows == len(HOSTILE)
        report = check_gold(through(pool), rows, mathematical=use == "math")
    assert report.rows == len(HOSTILE) and not report.sound and not report.stopped


BODY = "    return x + 1\n"
STUB = 'def f(x):\n    """Add one."""\n'
BIG_CODE_BENCH = {"complete_prompt": "import os\n" + STUB, "code_prompt": "import os\ndef f(x):\n"}
CODE_CONTESTS = {"language": [2, 3, 1], "solution": ["int main() {}", "print(3)", "?"]}
WITH_FENCE = "x = '''\n```\n'''"


@pytest.mark.parametrize(
    ("row", "column", "programs"),
    [
        ({"prompt": STUB, "canonical_solution": BODY, "test": "..."}, None, [STUB + BODY]),
        ({**BIG_CODE_BENCH, "canonical_solution": BODY}, None, ["import os\ndef f(x):\n" + BODY]),
        # Prose before a body makes no program; the verifier puts what it knows before it.
        ({"prompt": "Write f.", "canonical_solution": BODY}, None, [BODY]),
        ({"code": "def f(x): return 1", "test_list": ["assert f(1)"]}, None, ["def f(x): return 1\n"]),
        ({"code": "what to mend"}, None, None),
        ({"solutions": '["print(1)", "print(2)"]', "input_output": "{}"}, None, ["print(1)\n", "print(2)\n"]),
        ({"solutions": CODE_CONTESTS, "public_tests": {"input": []}}, None, ["print(3)\n"]),
        ({"solutions": "[", "input_output": "{}"}, None, ["[\n"]),
        ({"solutions": [None, 3, " "], "input_output": "{}"}, None, None),
        ({"fix": "print(1)", "canonical_solution": "print(2)"}, "fix", ["print(1)\n"]),
        ({"canonical_solution": "print(2)"}, "", None),
        ({"canonical_solution": ""}, None, None),
        ({"canonical_solution": "```python\nprint(2)\n```"}, None, ["print(2)\n"]),
        ({"canonical_solution": WITH_FENCE}, None, [WITH_FENCE + "\n"]),
    ],
)
def test_a_rows_solutions_are_its_gold_completions(
    row: dict[str, Any], column: str | None, programs: list[str] | None
) -> None:
    fence = "````" if "```" in row.get("canonical_solution", "").partition("x =")[2] else "```"
    expected = None if programs is None else [f"{fence}python\n{program}{fence}" for program in programs]
    assert gold_programs(row, "python", column) == expected


def test_solutions_in_another_language_are_taken_where_the_row_names_it() -> None:
    row = {"solutions": {"language": ["c++", "python"], "solution": ["int main() {}", "print(3)"]}}
    assert gold_programs(row, "cpp", "solutions") == ["```cpp\nint main() {}\n```"]
    assert gold_programs({**row, "canonical_solution": "print(1)"}, "cpp") is None


def test_only_verifiers_that_answer_questions_can_be_checked() -> None:
    with (
        VerifierPool([VerifierSpec("it", f"{__file__}:slow")], workers=1) as pool,
        pytest.raises(ValueError, match="questioned"),
    ):
        check_gold(through(pool), rows_of(["a"]))


def test_only_verdicts_that_failed_say_that_the_verifier_may_not_work() -> None:
    failed, refused = (
        Offender(GoldRow("1"), "1", verdict) for verdict in (error("no compiler"), wrong("another value"))
    )
    assert GoldReport(rows=1, refused=[failed]).only_failed
    assert not GoldReport(rows=2, refused=[failed, refused]).only_failed
    assert not GoldReport(rows=2, accepted=1, refused=[failed]).only_failed
