"""Verdicts on conversations: the environment's reward, failures of the world, and what verifiers get to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from conversations.made_up import make_conversation, make_dialogue

from grpo.config import VerificationConfig
from grpo.messages import ConversationEnd, WorldReward
from grpo.rollout.failure_share import FailureShare
from grpo.rollout.groups import Verifying, judge_group
from grpo.rollout.usable_rows import rows_of_all, usable_rows
from grpo.types import Completion, Group, Prompt, VersionSpan
from rewards import verdict
from rewards.build import VerifierSpec
from rewards.checks.gold_forms import GoldRow
from rewards.pool import VerifierPool
from rewards.verdict import Status, Verdict

PROMPT = Prompt("p", "?", (1,), "5", {"problem": "2+3?"})
WORLD = VerifierSpec("world", "environment", weight=2.0)
ANSWER = VerifierSpec("answer", "exact")


class RecordingPool:
    """Judges every completion correct, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any, Mapping[str, Any]]] = []

    def judges_groups(self, name: str) -> bool:
        return name == "grouped"

    def submit_many(self, calls: Iterable[tuple[str, str, Any, Mapping[str, Any]]]) -> list[Future[Verdict]]:
        asked = list(calls)
        self.calls += asked
        return [_correct() for _ in asked]

    def submit_group(
        self, name: str, completions: Sequence[str], reference: Any, prompt: Any, lists: Any = None
    ) -> list[Future[Verdict]]:
        self.calls.append((name, " ".join(completions), reference, lists))
        return [_correct() for _ in completions]


def _correct() -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict.correct())
    return future


def talk(**fields: Any) -> Completion:
    return make_conversation([[3, 4], [5, 5], [6]], [-1.0, -1.0, -1.0], make_dialogue(**fields), "It is 5.")


def judged(specs: Sequence[VerifierSpec], completions: Sequence[Completion], pool: RecordingPool) -> Group:
    verifying = Verifying(lambda prompt, each: judge_group(pool, specs, prompt, each), specs)
    verifying.start(0, PROMPT, completions)
    ((_, group),) = verifying.done()
    return group


@pytest.mark.parametrize(
    ("score", "status"), [(1.0, Status.CORRECT), (0.5, Status.SCORED), (0.0, Status.WRONG), (-1.0, Status.WRONG)]
)
def test_the_environment_s_reward_is_a_verdict_like_any_other(score: float, status: Status) -> None:
    pool = RecordingPool()
    group = judged([WORLD, ANSWER], [talk(reward=WorldReward(score, {"moves": 3.0}))], pool)
    (rollout,) = group.rollouts
    assert list(rollout.verdicts) == ["world", "answer"] and [call[0] for call in pool.calls] == ["answer"]
    assert rollout.verdicts["world"].status is status and rollout.verdicts["world"].parts == {"moves": 3.0}
    assert rollout.reward == 2.0 * score + 1.0
    assert rollout.correct == (score == 1.0)


def test_the_pass_mark_and_a_gate_hold_for_the_environment() -> None:
    gate = VerifierSpec("world", "environment", options={"pass_mark": 0.5}, gate=True)
    low, high = (talk(reward=WorldReward(score)) for score in (0.25, 0.5))
    group = judged([gate, ANSWER], [low, high], RecordingPool())
    assert [rollout.reward for rollout in group.rollouts] == [0.25, 1.5]


def test_no_reward_is_no_score() -> None:
    single = Completion((1,), (-0.5,), "5", "stop", (VersionSpan(0, 1, 0),))
    for completion, reason in ((talk(), "gives no reward"), (single, "not a conversation")):
        (rollout,) = judged([WORLD], [completion], RecordingPool()).rollouts
        assert rollout.reward is None and rollout.verdicts["world"].status is Status.ERROR
        assert reason in rollout.verdicts["world"].reason


@pytest.mark.parametrize(("timed_out", "status"), [(True, Status.TIMEOUT), (False, Status.ERROR)])
def test_a_failed_world_is_no_score_and_counts_as_a_failure(timed_out: bool, status: Status) -> None:
    failed = talk(ended=ConversationEnd.FAILED, reason="the process died", timed_out=timed_out)
    pool = RecordingPool()
    group = judged([ANSWER], [failed, talk()], pool)
    lost, good = group.rollouts
    assert lost.reward is None and lost.verdicts == {"environment": Verdict(None, status, "the process died")}
    assert good.reward == 1.0 and len(pool.calls) == 1
    with pytest.raises(RuntimeError, match="the process died"):
        FailureShare(0.25).check([group])
    named = judged([ANSWER, WORLD], [failed], RecordingPool())
    assert list(named.rollouts[0].verdicts) == ["world"]


def test_verifiers_see_the_transcript_of_a_conversation_only() -> None:
    pool = RecordingPool()
    specs = [ANSWER, VerifierSpec("grouped", "exact")]
    judged(specs, [talk()], pool)
    messages = [
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "5", "name": "add"},
        {"role": "assistant", "content": "It is 5."},
    ]
    grouped, alone = pool.calls
    assert alone == ("answer", "It is 5.", "5", {"problem": "2+3?", "completion_tokens": 3, "messages": messages})
    assert grouped[3] == {"completion_tokens": [3], "messages": [messages]}
    pool.calls.clear()
    judged([ANSWER], [Completion((1,), (-0.5,), "5", "stop", (VersionSpan(0, 1, 0),))], pool)
    assert pool.calls[0][3] == {"problem": "2+3?", "completion_tokens": 1}


def test_the_check_before_a_run_leaves_the_environment_alone() -> None:
    """Nobody can judge an environment's reward without a conversation."""
    rows = {"training": [GoldRow(str(number), {}, f"row {number}") for number in range(6)]}
    assert usable_rows((WORLD,), rows, VerificationConfig()).left_out == ()
    # Beside it, another verifier is checked as ever, and each row has a copy for it alone.
    assert [row.verifier for row in rows_of_all((WORLD, ANSWER), rows["training"][:2])] == ["answer", "answer"]


def test_a_verifier_that_always_fails_is_named_once_and_alone(tmp_path: Path) -> None:
    """Its rows may be good, so no message says that no completion could earn its reward."""
    (tmp_path / "broken.py").write_text("def broken(completion, reference):\n    raise KeyError('no such key')\n")
    spec = VerifierSpec("broken", f"{tmp_path}/broken.py:broken")
    rows = {part: [GoldRow(str(at), {}, f"row {at}") for at in range(3)] for part in ("training", "held_out")}
    with pytest.raises(ValueError, match="broken") as refused:
        usable_rows((spec,), rows, VerificationConfig(workers=1))
    assert str(refused.value).count("KeyError") >= 1 and "no completion could earn" not in str(refused.value)
    assert "set verification.check_golds=warn" in str(refused.value)
    warned = usable_rows((spec,), rows, VerificationConfig(workers=1, check_golds="warn"))
    assert warned.left_out == () and any("KeyError" in line for line in warned.lines)


def test_a_pool_carries_the_transcript_to_the_verifiers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def alone(completion, reference, prompt):\n    return prompt['messages'][2]['name'] == 'add'\n"
        "def grouped(completions, reference, prompt):\n"
        "    return [each[-1]['content'] == text for each, text in zip(prompt['messages'], completions)]\n"
    )
    specs = [VerifierSpec(name, f"{tmp_path}/mine.py:{name}") for name in ("alone", "grouped")]
    with VerifierPool([*specs, WORLD], workers=1) as pool:
        futures = judge_group(pool, [*specs, WORLD], PROMPT, [talk(), talk()])
        said = [{name: future.result(timeout=60).status for name, future in named.items()} for named in futures]
    assert said == [{"alone": Status.CORRECT, "grouped": Status.CORRECT}] * 2
