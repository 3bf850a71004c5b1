"""From stored completions to numbers, by hand; and votes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from test_eval_store import record

from grpo.evaluation.compare import compare_tables
from grpo.evaluation.metrics import task_metrics
from grpo.evaluation.progress import EvalProgress, results_table
from grpo.evaluation.store import Judged
from grpo.evaluation.votes import Answers, Call, vote
from rewards.verdict import Status, Verdict, correct, timeout, wrong

SIGNS = {"+": Status.CORRECT, "-": Status.WRONG, "?": Status.TIMEOUT}


def table(*problems: str, seeds: int = 1, classes: Sequence[Sequence[int | None]] | None = None) -> list[Judged]:
    """Problems as strings: + correct, - wrong, ? unknown; the completions of the seeds one after the other."""
    rows = []
    for number, signs in enumerate(problems):
        k = len(signs) // seeds
        for at, sign in enumerate(signs):
            status = SIGNS[sign]
            one = record(
                f"t:{number}", at // k, at % k, digest=f"d{number}", status=status,
                score=None if status.failed else float(sign == "+"), completion_tokens=10 * (at + 1),
                finish_reason="length" if at == 0 else "stop",
            )  # fmt: skip
            rows.append(Judged(one, f"question {number}", '"1"', None, classes[number][at] if classes else None))
    return rows


def test_numbers_by_hand() -> None:
    found = task_metrics("t", table("++--", "+---", "----", "++++"), votes=False)
    value = {name: one.value for name, one in found.estimates.items()}
    assert value["accuracy"] == value["avg@4"] == (0.5 + 0.25 + 0 + 1) / 4
    # 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2
    assert value["pass@2"] == pytest.approx((5 / 6 + 1 / 2 + 0 + 1) / 4)
    assert value["pass@4"] == 3 / 4
    assert value["completion_tokens"] == 25.0 and value["truncated"] == 0.25
    assert value["status/wrong"] == 1 - value["accuracy"] == 1 - value["status/correct"]
    assert found.statuses == {"correct": 7, "scored": 0, "wrong": 9, "unparseable": 0, "timeout": 0, "error": 0}
    assert not any(name.startswith("maj@") for name in value)
    assert "pass@1" not in value and (found.k, found.problems, found.completions) == (4, 4, 16)
    for estimate in found.estimates.values():
        assert estimate.low <= estimate.value <= estimate.high and estimate.problems == 4


def test_a_failed_verdict_is_no_wrong_answer() -> None:
    found = task_metrics("t", table("+?", "??", "-+", "--"), votes=False)
    assert found.estimates["accuracy"].value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.estimates["accuracy"].problems == 3, "of the second nothing is known"
    assert found.estimates["pass@2"].problems == 2, "of the first one completion is known"
    assert found.statuses["timeout"] == 3 and found.estimates["status/timeout"].value == 3 / 8
    with pytest.raises(ValueError, match="every verdict is a failure"):
        task_metrics("t", table("??", "??"), votes=False)


def test_seeds_are_told_apart_and_vote_each_for_itself() -> None:
    rows = table("++-" + "---", "+--" + "+++", seeds=2, classes=[[0, 0, 1, 1, 1, 2], [0, 1, 2, 0, 0, 0]])
    found = task_metrics("t", rows, votes=True)
    assert found.seeds == (0, 1) and found.k == 3
    assert found.accuracy_by_seed == {0: pytest.approx((2 / 3 + 1 / 3) / 2), 1: pytest.approx((0 + 1) / 2)}
    # First problem: right, then wrong; second: a tie of three, of which one is right, then right.
    assert found.estimates["maj@3"].value == pytest.approx(((1 + 0) / 2 + (1 / 3 + 1) / 2) / 2)
    assert {"pass@2", "pass@4", "pass@6"} <= set(found.estimates)


def judge(calls: Sequence[Call]) -> list[Future[Verdict]]:
    """Says that two numbers are the same where they have the same value; never comes to an end for "slow"."""
    futures = []
    for completion, reference, row in calls:
        assert row == {}
        future: Future[Verdict] = Future()
        if "slow" in (completion, reference):
            future.set_result(timeout("too slow"))
        else:
            future.set_result(correct() if float(completion) == float(reference) else wrong())
        futures.append(future)
    return futures


def test_wrong_answers_are_classed_by_the_verifier_and_right_ones_are_one_class() -> None:
    texts = ["1", "2", "2.0", "1.00", "", "2", "slow", "7"]
    statuses = [
        Status.CORRECT,
        *[Status.WRONG] * 2,
        Status.CORRECT,
        Status.UNPARSEABLE,
        *[Status.WRONG] * 2,
        Status.ERROR,
    ]
    records = [
        record(sample=at, completion=text, status=status, score=None if status.failed else 0.0)
        for at, (text, status) in enumerate(zip(texts, statuses, strict=True))
    ]
    found, classes, undecided = vote(records, Answers(lambda text: text or None, by_verifier=True), judge, 1.0)
    assert found == ["1", "2", "2.0", "1.00", None, "2", "slow", "7"]
    assert classes == [0, 1, 1, 0, None, 1, 2, None]
    assert undecided == 2
    _, by_text, _ = vote(records, Answers(lambda text: text or None, by_verifier=False), judge, 1.0)
    assert by_text == [0, 1, 2, 0, None, 1, 3, None]


def test_comparison_is_over_what_both_answered() -> None:
    first, second = table("--", "+-", "++", "--", "??"), table("++", "++", "+-", "--", "++")
    found = compare_tables("t", first, [row for row in second if row.record.problem != "t:3"])
    assert (found.shared, found.only_first, found.only_second) == (3, 1, 1)
    assert found.first.value == 0.5 and found.second.value == pytest.approx(2.5 / 3)
    assert found.difference.value == pytest.approx((1 + 0.5 - 0.5) / 3)
    # |1| + |1/2| + |1/2|: sums as far from 0 as 1: all but +1 -1/2 -1/2 and its mirror image.
    assert found.p_value == pytest.approx(6 / 8)
    assert [flip.problem for flip in found.better] == ["t:0", "t:1"]
    assert [flip.problem for flip in found.worse] == ["t:2"]
    assert (found.worse[0].before, found.worse[0].after, found.worse[0].question) == (1.0, 0.5, "question 2")
    with pytest.raises(ValueError, match=r"share 0 problem\(s\)"):
        compare_tables("t", first, [])
    with pytest.raises(ValueError, match=r"share 1 problem\(s\)"):
        compare_tables("t", first[:2], second)
    assert compare_tables("t", first[:4], second).shared == 2


def test_repeated_problems_are_paired_one_by_one() -> None:
    def repeated(*problems: str) -> list[Judged]:
        rows = table(*problems)
        same = {"t:0": "same", "t:1": "same", "t:3": "same"}
        return [
            replace(row, record=replace(row.record, digest=same.get(row.record.problem, row.record.digest)))
            for row in rows
        ]

    found = compare_tables("t", repeated("+", "-", "+", "-"), repeated("+", "+", "-", "-"))
    assert (found.shared, found.first.value, found.second.value) == (4, 0.5, 0.5)
    assert [flip.problem for flip in found.better] == ["t:1"] and [flip.problem for flip in found.worse] == ["t:2"]
    fewer = compare_tables("t", repeated("+", "?", "+", "-"), repeated("+", "+", "-")[:3])
    assert (fewer.shared, fewer.only_first, fewer.only_second) == (2, 1, 1), "an unknown verdict shifts no pair"


def test_refused_completions_have_no_length_and_statuses_one_denominator() -> None:
    rows = table("+", "+", "+", "-", "?")
    refused = replace(rows[4].record, completion_tokens=0, finish_reason="refused", status=Status.ERROR)
    found = task_metrics("t", [*rows[:4], replace(rows[4], record=refused)], votes=False)
    value = {name: one.value for name, one in found.estimates.items()}
    assert value["accuracy"] == value["status/correct"] == 0.75 and value["status/wrong"] == 0.25
    assert (value["completion_tokens"], value["truncated"], value["status/error"]) == (10.0, 1.0, 0.2)
    assert found.estimates["truncated"].problems == 4
    console = Console(file=(text := StringIO()), width=200)
    console.print(results_table("m", {"t": found}))
    assert "judged completions" in text.getvalue() and "4 of 5" in text.getvalue()


def test_an_interrupt_says_what_is_stored() -> None:
    console = Console(file=(text := StringIO()), width=200)
    with pytest.raises(KeyboardInterrupt), EvalProgress("sums", 100, console) as progress:
        progress.start_with([row.record for row in table("++", "+-")])
        progress.add(record("t:9"))
        raise KeyboardInterrupt
    assert "stopped: 5 of 100 completions of sums are stored; the same command continues" in text.getvalue()
    with EvalProgress("sums", 1, console):
        text.truncate(0)
    assert "stopped" not in text.getvalue()
