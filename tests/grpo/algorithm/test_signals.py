"""Signals for single tokens: hand values of process supervision and of a teacher, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import make_tiny_policy

from grpo.algorithm.signals.by_token import step_metrics
from grpo.algorithm.signals.process import TokenEnds, process_advantages
from grpo.algorithm.signals.teacher import reverse_kl, teacher_advantages
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.jobs import TrainConfig
from grpo.config.signals.teacher import TeacherConfig
from grpo.policy.stored import load_tokenizer
from grpo.policy.teacher import check_teacher
from grpo.rollout.group_state import group_from_state, group_state
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards.adapt import Adapted
from rewards.build import VerifierSpec
from rewards.compose import StepReward, step_rewards
from rewards.pool.wire import MAX_SPANS, ProtocolError, read_verdict, verdict_fields
from rewards.verdict import Status, Verdict, correct, error, wrong

PROCESS = AlgorithmConfig(supervision="process")
STEPS = (VerifierSpec("steps", "user.py:steps"),)
END = 0


def decode(ids: Sequence[int]) -> str:
    """Token n is the byte n; the token 0 ends a completion."""
    return "<end>" if list(ids) == [END] else bytes(each for each in ids if each).decode(errors="replace")


def completion(text: str) -> Completion:
    ids = (*text.encode(), END)
    return Completion(ids, (-1.0,) * len(ids), text, "stop", (VersionSpan(0, len(ids), 0),))


def rollout(text: str, *spans: tuple[int, int, float], score: float = 1.0) -> Rollout:
    return Rollout(completion(text), {"steps": Verdict(score, Status.SCORED, spans=spans)}, score)


def group(*rollouts: Rollout) -> Group:
    return Group(Prompt("p:0", "?", (1,), "0", {}), rollouts)


def test_a_token_has_the_sum_of_the_normalised_rewards_of_the_steps_that_end_at_or_after_it() -> None:
    groups = [
        group(rollout("abcd", (0, 2, 1.0), (2, 4, 0.0)), rollout("efg", (1, 3, 1.0)), rollout("x", (0, 1, 9.0))),
        group(rollout("ab", score=1.0), rollout("c", score=0.0)),
    ]
    valid = torch.tensor([[True, True, False], [True, True, False]])
    first, second = process_advantages(PROCESS, groups, valid, STEPS, TokenEnds(decode))
    # The rewards of steps are 1, 0, 1: their mean is 2/3, and their sample deviation is the root of 1/3.
    right, false = 3**0.5 / 3, -2 * 3**0.5 / 3
    assert first[0] == pytest.approx([right + false] * 2 + [false] * 2 + [0.0])
    assert first[1] == pytest.approx([right] * 3 + [0.0])
    assert first[2] is None
    # Without spans, the score is a step that ends with the last token, so this is outcome supervision.
    assert second[0] == pytest.approx([0.5**0.5] * 3) and second[1] == pytest.approx([-(0.5**0.5)] * 2)
    assert step_metrics(groups) == {"process/steps_mean": 4 / 5, "process/step_score_mean": 11 / 4}
    centred = process_advantages(
        AlgorithmConfig(supervision="process", advantage="group_mean"), groups[:1], valid[:1], STEPS, TokenEnds(decode)
    )
    assert centred[0][1] == pytest.approx([1 / 3] * 3 + [0.0])


def test_a_step_ends_in_the_token_that_completes_its_last_character() -> None:
    ends = TokenEnds(decode)
    accents = completion("aéb")
    assert len(accents.token_ids) == 5
    assert [ends.last_token(accents, stop) for stop in (1, 2, 3, None)] == [0, 2, 3, 4]
    with pytest.raises(ValueError, match=r"characters up to 4 of a completion that has 3"):
        ends.last_token(accents, 4)


def test_steps_follow_weights_and_gates() -> None:
    specs = (
        VerifierSpec("steps", "a", weight=2.0),
        VerifierSpec("form", "b", weight=0.5, gate=True),
        VerifierSpec("length", "c", weight=0.0),
    )
    judged = {"steps": Verdict(1.0, Status.CORRECT, spans=[(0, 2, 1), (2, 3, 0.5)]), "length": correct()}
    open_gate = step_rewards(specs, {**judged, "form": correct()})
    assert open_gate == [StepReward(2, 2.0), StepReward(3, 1.0), StepReward(None, 0.5)]
    closed = step_rewards(specs, {**judged, "form": wrong()})
    assert closed == [StepReward(2, 0.0), StepReward(3, 0.0), StepReward(None, 0.0)]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 2)], r"span 0 must be \(start, stop, score\), got '\(0, 2\)'"),
        ([(0, 2, "x")], r"span 0 must be \(start, stop, score\)"),
        ([(0.5, 2, 1)], r"span 0 must be"),
        ([(0, 2, float("nan"))], r"score of span 0 must be a finite number"),
        ([(0, 2, 1), (1, 3, 1)], r"span 1 covers the characters \[1, 3\) after a span that ends at 2"),
        ([(2, 2, 1)], r"must not be empty"),
        ([(-1, 2, 1)], r"must ascend"),
    ],
)
def test_spans_that_cannot_be_steps(spans: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Verdict(1.0, Status.CORRECT, spans=spans)
    judged = Adapted(lambda text, reference: Verdict(1.0, Status.CORRECT, spans=spans))("abc", "", {})
    assert judged.status is Status.ERROR


def test_spans_outside_the_completion_are_an_error_and_no_score() -> None:
    outside = [Verdict(1.0, Status.CORRECT, spans=[(0, 4, 1.0)])]
    said = "returned a span [0, 4) of a completion that has 3 characters"
    assert Adapted(lambda completion, reference: outside[0])("abc", "", {}) == error(said)
    whole = Adapted(lambda completions, reference, prompt: outside)
    assert whole.judges_groups and whole("abc", "", {}) == error(said)
    with pytest.raises(ValueError, match="has no scores"):
        Verdict(None, Status.ERROR, spans=[(0, 1, 1.0)])


def test_spans_travel_from_the_workers_and_in_checkpoints() -> None:
    judged = Verdict(1.0, Status.CORRECT, spans=[(0, 2, 0.25), (2, 3, 1)])
    assert read_verdict(json.loads(json.dumps(verdict_fields(judged)))) == judged
    for forged in ([[0, 2]], [[0.5, 2, 1]], "spans", [[0, 2, "1"]]):
        with pytest.raises(ProtocolError, match="spans"):
            read_verdict([1.0, "correct", "", {}, forged])
    assert read_verdict([1.0, "correct", "", {}, [[5, 2, 1.0]]]).status is Status.ERROR
    many = Verdict(1.0, Status.CORRECT, spans=[(at, at + 1, 1.0) for at in range(MAX_SPANS + 1)])
    assert read_verdict(verdict_fields(many)).status is Status.ERROR
    scored = group(Rollout(completion("abc"), {"steps": judged}, 1.0))
    assert group_from_state(group_state(scored), {"p:0": scored.prompt}) == scored


def test_the_teacher_adds_the_log_ratio_at_each_token() -> None:
    groups = [group(rollout("ab"), rollout("c"), rollout("d"))]
    scores = [[(-0.5, -1.0, -3.0), None, (-2.0, -1.0)]]
    advantages = torch.tensor([[0.5, 1.0, -0.5]])
    steps = [[(1.0, 2.0, 3.0), None, None]]
    beside = teacher_advantages(TeacherConfig(path="t", weight=2.0), groups, scores, advantages, None)
    assert beside == [[(1.5, 0.5, -3.5), None, (-2.5, -0.5)]]
    with_steps = teacher_advantages(TeacherConfig(path="t"), groups, scores, advantages, steps)
    assert with_steps == [[(1.5, 2.0, 1.0), None, (-1.5, -0.5)]]
    alone = teacher_advantages(TeacherConfig(path="t", alone=True), groups, scores, advantages, steps)
    assert alone == [[(0.5, 0.0, -2.0), None, (-1.0, 0.0)]]
    assert reverse_kl(groups, scores) == pytest.approx((-0.5 + 0.0 + 2.0 + 1.0 + 0.0) / 5)
    assert reverse_kl(groups, [[None] * 3]) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": "maxrl"}, r"defined for whole completions only"),
        ({"turn_rewards": {}}, r"both give advantages to parts"),
        ({"refill_rounds": 2}, r"refill_rounds=2 replaces groups"),
        ({"kl": "k1", "kl_coefficient": 0.1, "kl_place": "reward"}, r"set algorithm\.kl_place=loss"),
    ],
)
def test_settings_that_contradict_process_supervision(settings: dict[str, Any], message: str) -> None:
    (problem,) = AlgorithmConfig.model_validate({"supervision": "process", **settings}).problems(8)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_a_teacher_of_another_tokenizer_or_context_is_refused(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    settings: dict[str, Any] = {
        "run": {"folder": "r"},
        "policy": {"path": str(policy)},
        "data": {"path": "rows.jsonl"},
        "verifiers": [{"name": "a", "use": "exact"}],
        "rollout": {"max_prompt_tokens": 20, "max_completion_tokens": 20},
        "train": {"steps": 1},
    }
    tokenizer = load_tokenizer(str(policy))

    def check(path: Path, **more: Any) -> None:
        given = {**settings, **more, "algorithm": {"teacher": {"path": str(path)}}}
        check_teacher(TrainConfig.model_validate(given), tokenizer)

    check(policy)
    with pytest.raises(ValueError, match=r"algorithm\.teacher\.path='.*absent' is neither a folder"):
        check(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has 128 positions, fewer than the longest sequence of 220"):
        check(policy, rollout={"max_prompt_tokens": 20, "max_completion_tokens": 200})
    other = shutil.copytree(policy, tmp_path / "other")
    stored = json.loads((other / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"another tokenizer than the policy .*'1' is \d+ of the policy's and \d+ of"):
        check(other)
