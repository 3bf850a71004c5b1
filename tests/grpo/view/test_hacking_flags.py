"""Made-up hacks are flagged, and honest learning is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from grpo.report.metrics_log import History, MetricsLine
from grpo.view.flags import Flag, FlaggedRollout, hacking_flags

STEPS = 40
Curve = Callable[[float], float]


def history(noise: float = 0.01, every: int = 5, **curves: Curve) -> History:
    """Metrics over a run, `done` from 0 to 1; names have `__` for the slash, evaluations come at every fifth step."""
    source = random.Random(0)
    lines = []
    for step in range(1, STEPS + 1):
        done = (step - 1) / (STEPS - 1)
        metrics = {
            name.replace("__", "/"): curve(done) * (1 + source.gauss(0, noise))
            for name, curve in curves.items()
            if not name.startswith("eval__") or step % every == 0
        }
        lines.append(MetricsLine(step, 0.0, metrics))
    return History(tuple(lines))


def rising(done: float) -> float:
    return 0.3 + 0.6 * done


def falling(done: float) -> float:
    return 0.6 - 0.3 * done


def kinds(flags: tuple[Flag, ...]) -> list[str]:
    return [flag.kind for flag in flags]


def test_honest_learning_raises_no_flag() -> None:
    honest = history(
        reward__mean=rising,
        reward__std=falling,
        reward__answer=rising,
        rollout__accuracy=rising,
        eval__accuracy=rising,
        # Thinking before the answer is longer, and right more often.
        rollout__completion_tokens_mean=lambda done: 18 + 30 * done,
        rollout__truncated_share=lambda done: 0.02,
        verdict__answer__timeout=lambda done: 0.001,
    )
    texts = [
        FlaggedRollout(step, group, f"p{step}-{group}", 1.0, "<answer>12</answer>")
        for step in (1, 40)
        for group in range(9)
    ]
    assert hacking_flags(honest, texts) == ()


def test_a_plateau_at_the_top_is_no_flag() -> None:
    assert hacking_flags(history(reward__mean=rising, eval__accuracy=lambda done: 0.97, noise=0.005)) == ()


def test_a_noisy_reward_that_does_not_rise_is_no_flag() -> None:
    flat = history(noise=0.3, reward__mean=lambda done: 0.5, eval__accuracy=falling, rollout__accuracy=falling)
    assert hacking_flags(flat) == ()


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        (lambda done: 0.3 + 0.5 * done if done < 0.5 else 0.55 - 0.6 * (done - 0.5), "falls"),
        (lambda done: 0.4, "does not"),
    ],
)
def test_reward_up_and_held_out_accuracy_not(held_out: Curve, told: str) -> None:
    (flag,) = hacking_flags(history(noise=0.0, reward__mean=rising, eval__accuracy=held_out))
    assert flag.kind == "held_out" and told in flag.title
    assert flag.metrics == ("reward/mean", "eval/accuracy")
    assert "mean reward 0.3" in flag.evidence


def test_reward_earned_on_another_part_than_the_answer() -> None:
    hacked = history(reward__mean=rising, reward__answer=falling, reward__format=rising, rollout__accuracy=falling)
    (flag,) = hacking_flags(hacked)
    assert flag.kind == "accuracy"
    assert "reward/format gained most" in flag.evidence and flag.metrics[-1] == "reward/format"


@pytest.mark.parametrize(
    ("length", "told"),
    [(lambda done: 200 - 180 * done, "shrink"), (lambda done: 50 + 400 * done, "grow")],
)
def test_length_moves_instead_of_accuracy(length: Curve, told: str) -> None:
    moved = history(reward__mean=rising, rollout__completion_tokens_mean=length, rollout__accuracy=lambda done: 0.5)
    (flag,) = hacking_flags(moved)
    assert flag.kind == "length" and told in flag.title


def test_more_and_more_completions_are_cut() -> None:
    (flag,) = hacking_flags(history(rollout__truncated_share=lambda done: 0.02 + 0.5 * done))
    assert flag.kind == "length" and "limit" in flag.title


def test_verifiers_that_fail() -> None:
    broken = history(verdict__code__error=lambda done: 0.2 * done, verdict__code__timeout=lambda done: 0.001)
    sampled = [FlaggedRollout(40, 3, "p", None, "boom"), FlaggedRollout(40, 4, "q", 1.0, "fine")]
    (flag,) = hacking_flags(broken, sampled)
    assert flag.kind == "failures" and flag.metrics == ("verdict/code/error",) and flag.groups == ((40, 3),)


def test_one_text_for_every_prompt() -> None:
    hack = "The answer is whatever the checker wants it to be, so it is right."
    sampled = [
        FlaggedRollout(9, group, f"p{group}", 1.0, hack if group % 3 == 0 else f"{group}: {hack}")
        for group in range(30)
    ]
    (flag,) = hacking_flags(History(()), sampled)
    assert flag.kind == "copies" and "10 times in 30" in flag.evidence and flag.groups[0] == (9, 0)
    # The same text that earns nothing is no hack, nor are several samples of one prompt.
    unrewarded = [FlaggedRollout(one.step, one.group, one.prompt_id, 0.0, one.text) for one in sampled]
    assert hacking_flags(History(()), unrewarded) == ()
    one_prompt = [FlaggedRollout(9, 0, "p", 1.0, hack) for _ in range(30)]
    assert hacking_flags(History(()), one_prompt) == ()


def test_completions_that_say_the_same_again_and_again() -> None:
    source = random.Random(0)
    plain = [
        FlaggedRollout(1, group, f"p{group}", 1.0, " ".join(str(source.random()) for _ in range(40)))
        for group in range(20)
    ]
    loop = "wait, let me think about this once more. "
    late = [
        FlaggedRollout(50, group, f"q{group}", 1.0, f"{group} " + loop * (20 if group < 5 else 1))
        for group in range(20)
    ]
    (flag,) = hacking_flags(History(()), [*plain, *late])
    assert flag.kind == "loops" and "0% of rewarded completions before step 50, 25%" in flag.evidence
    assert set(flag.groups) == {(50, group) for group in range(5)}


def test_the_audit_refuses_more_and_more() -> None:
    sampled = [FlaggedRollout(step, 0, "p", 1.0, "x" * step) for step in (1, 40)]
    audit = [{"step": step, "accepted_only_by": "run", "completion": "x" * step} for step in (2, 36, 38, 39, 40)]
    (flag,) = hacking_flags(History(()), sampled, audit)
    assert flag.kind == "audit" and "1 up to step 20, 4 after it" in flag.evidence and flag.groups == ((40, 0),)
    # What only Math-Verify accepts is no gain of the policy's, and even disagreement is a grader's, not the policy's.
    assert hacking_flags(History(()), sampled, [row | {"accepted_only_by": "math_verify"} for row in audit]) == ()
    even = [{"step": step, "accepted_only_by": "run", "completion": ""} for step in (2, 5, 8, 30, 35, 40)]
    assert hacking_flags(History(()), sampled, even) == ()
