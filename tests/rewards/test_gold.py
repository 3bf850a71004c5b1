"""The check of gold answers, with verifiers that are sound, and with such as are not."""

from __future__ import annotations

import random
import time

import pytest

from rewards.build import VerifierSpec
from rewards.exact import Exact
from rewards.gold import FORMS, GoldRow, answers_of, check_gold, one_by_one, scramble, through
from rewards.math import Math
from rewards.numeric import Numeric
from rewards.pool import VerifierPool
from rewards.verdict import correct, wrong

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
    with VerifierPool([VerifierSpec("it", f"{__file__}:hang_on_7")], workers=2, deadline_s=0.5) as pool:
        begun = time.monotonic()
        report = check_gold(through(pool, most_killed=3), [GoldRow(r.reference, verifier="it") for r in NUMBERS])
        assert time.monotonic() - begun < 20
    assert "hung until their deadline" in report.stopped and not report.sound


def test_a_verifier_that_is_slow_does_not_hold_up_the_check_for_ever() -> None:
    with VerifierPool([VerifierSpec("it", f"{__file__}:slow")], workers=1) as pool:
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
