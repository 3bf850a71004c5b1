from __future__ import annotations

import pytest

from rewards.checks.audit import AuditedRollout, audit, kind_of, wilson
from rewards.verdict import Status, correct, error, unparseable, wrong
from rewards.verifiers.math import Math


def rollout(reference: str, status: Status) -> AuditedRollout:
    return AuditedRollout("What?", f"\\boxed{{{reference}}}", reference, status)


def test_disagreements_are_sorted_and_counted() -> None:
    ours = [Status.CORRECT] * 4 + [Status.WRONG] * 3 + [Status.UNPARSEABLE, Status.TIMEOUT, Status.CORRECT]
    theirs = [
        correct(),
        correct(),
        wrong(),
        unparseable(),
        correct(),
        wrong(),
        wrong(),
        correct(),
        correct(),
        error("x"),
    ]
    golds = ["5", "5", "(1,2)", "\\frac12", "x+1", "5", "5", "\\{1\\}", "5", "5"]
    report = audit([rollout(gold, status) for gold, status in zip(golds, ours, strict=True)], theirs)
    assert report.graded == 8
    assert report.undecided == {"run": 1, "other grader": 1}
    assert [each.rollout.reference for each in report.accepted_only_by_us] == ["(1,2)", "\\frac12"]
    assert [each.rollout.reference for each in report.accepted_only_by_them] == ["x+1", "\\{1\\}"]
    assert (report.false_positives.count, report.false_positives.of) == (2, 4)
    assert (report.false_negatives.count, report.false_negatives.of) == (2, 4)
    assert report.by_kind == {"expression": (1, 1), "set": (0, 1), "tuple or interval": (1, 0)}
    with pytest.raises(ValueError, match="one verdict per rollout"):
        audit([rollout("5", Status.CORRECT)], [])


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Worked out by hand from Wilson's formula.
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (3, 1000, 0.00102, 0.00878),
    ],
)
def test_wilson_intervals(count, of, low, high) -> None:
    rate = wilson(count, of)
    assert rate.low == pytest.approx(low, abs=1e-4) and rate.high == pytest.approx(high, abs=1e-4)
    with pytest.raises(ValueError):
        wilson(of + 1, of)


def test_kinds_of_references() -> None:
    assert kind_of("2 + 3 = 5\n#### 5") == kind_of(5.0) == "integer"
    kinds = {"5": "integer", "-3": "integer", "-0.5": "rational",
             "0.5": "rational", "x+1": "expression", "x=5": "relation", "1,2": "list", "\\{1\\}": "set",
             "\\text{yes}": "text", "5\\%": "percent", "5 \\text{ cm}": "quantity", "3:4": "ratio or time",
             "\\frac{1": "unreadable", "\\pi": "constant", "x": "symbol"}  # fmt: skip
    assert {reference: kind_of(reference) for reference in kinds} == kinds


def test_math_verify_agrees_on_plain_answers() -> None:
    pytest.importorskip("math_verify", reason="the extra `audit` is not installed")
    from rewards.build import build_verifier

    verify = build_verifier("math_verify")
    assert verify("<think>\\boxed{1}</think>\\boxed{2}", "2", {}).status is Status.CORRECT
    assert verify("\\boxed{3}", "2", {}).status is Status.WRONG
    assert verify("<think>\\boxed{2}", "2", {}).status is Status.UNPARSEABLE
    # It knows nothing of answer tags by itself.
    for answer in ("-2", "$-2$", "\\boxed{-2}", "\\frac{-4}{2}", " -2 "):
        assert verify(f"<think>3</think><answer>{answer}</answer>", "-2", {}).status is Status.CORRECT, answer
    assert verify("<answer>-3</answer>", "-2", {}).status is Status.WRONG


@pytest.mark.slow
def test_the_same_verdicts_in_a_ray_actor(ray_running: None) -> None:
    ray = pytest.importorskip("ray")
    from labelled_pairs import read_pairs

    class Grader:
        def __init__(self, root: str) -> None:
            import sys

            sys.path.insert(0, root)
            from rewards.verifiers.math import Math

            self.verify = Math()

        def grade(self, pairs):
            return [self.verify(completion, gold, {}).status.value for gold, completion in pairs]

    from pathlib import Path

    pairs = [(pair.gold, pair.completion) for pair in read_pairs()][::4]
    here = Math()
    actor = ray.remote(Grader).remote(str(Path(__file__).resolve().parents[3]))
    assert ray.get(actor.grade.remote(pairs), timeout=120) == [here(c, g, {}).status.value for g, c in pairs]
    ray.kill(actor)
