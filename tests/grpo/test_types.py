"""What travels between the rooms is checked when it is made."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from grpo.types import ActorId, ActorKind, Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict

COMPLETION = Completion((1, 2, 3), (-0.1, -0.2, -0.3), "abc", "stop", (VersionSpan(0, 2, 4), VersionSpan(2, 3, 5)))


@pytest.mark.parametrize(
    "spans",
    [
        (),
        (VersionSpan(0, 2, 0),),
        (VersionSpan(1, 3, 0),),
        (VersionSpan(0, 4, 0),),
        (VersionSpan(0, 2, 0), VersionSpan(1, 3, 0)),
        (VersionSpan(0, 1, 0), VersionSpan(2, 3, 0)),
        (VersionSpan(0, 3, 0), VersionSpan(3, 3, 1)),
        (VersionSpan(2, 3, 0), VersionSpan(0, 2, 1)),
    ],
    ids=str,
)
def test_spans_cover_every_token_once_and_in_order(spans: tuple[VersionSpan, ...]) -> None:
    with pytest.raises(ValueError, match="do not cover the 3 tokens in order"):
        dataclasses.replace(COMPLETION, spans=spans)


def test_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="3 tokens came with 2 log-probabilities"):
        dataclasses.replace(COMPLETION, logprobs=(-0.1, -0.2))
    with pytest.raises(ValueError, match="at least one token"):
        Completion((), (), "", "stop", ())
    with pytest.raises(ValueError, match="prompt rows:7 has no tokens"):
        Prompt("rows:7", "", (), "1", {})
    with pytest.raises(ValueError, match="group of prompt rows:7 is empty"):
        Group(Prompt("rows:7", "a", (1,), "1", {}), ())


def test_only_a_failed_verdict_leaves_a_rollout_without_a_reward() -> None:
    with pytest.raises(ValueError, match="needs a verdict that failed"):
        Rollout(COMPLETION, {"answer": verdict.wrong()}, None)
    with pytest.raises(ValueError, match="at least one verdict"):
        Rollout(COMPLETION, {}, 1.0)
    assert Rollout(COMPLETION, {"answer": verdict.correct(), "form": verdict.timeout("slow")}, None).reward is None


def test_the_first_verifier_says_what_is_correct() -> None:
    assert Rollout(COMPLETION, {"answer": verdict.correct(), "form": verdict.wrong()}, 0.5).correct
    assert not Rollout(COMPLETION, {"form": verdict.wrong(), "answer": verdict.correct()}, 0.5).correct


def test_what_crosses_processes_comes_back_equal() -> None:
    group = Group(
        Prompt("rows:7", "a", (1,), "1", {"level": 3}),
        (Rollout(COMPLETION, {"answer": verdict.correct(tags=1.0)}, 1.0),),
    )
    assert pickle.loads(pickle.dumps(group)) == group


@pytest.mark.parametrize(
    ("actor", "text"),
    [
        (ActorId(ActorKind.DRIVER), "driver"),
        (ActorId(ActorKind.LEARNER, 12), "learner rank 12"),
        (ActorId(ActorKind.GENERATOR, 0), "generator 0"),
        (ActorId(ActorKind.VERIFIERS), "verifiers"),
        (ActorId(ActorKind.VERIFIERS, "0123456789ab"), "verifiers on node 0123456789ab"),
    ],
)
def test_an_actor_is_read_from_the_text_that_time_lines_hold(actor: ActorId, text: str) -> None:
    assert str(actor) == text and ActorId.parse(text) == actor


@pytest.mark.parametrize("text", ["", "generator x", "learner 1", "drivers", "generators 1"])
def test_other_text_names_no_actor(text: str) -> None:
    with pytest.raises(ValueError, match="expected an actor"):
        ActorId.parse(text)
