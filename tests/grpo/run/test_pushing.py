"""The proof of a run's pushes: its tolerance comes from the rounding that is measured before the first push."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conversations.made_up import make_conversation
from fake_engines import FakeGenerators, FakeLearner

from grpo import config
from grpo.run.pushing import Pushing
from grpo.run.turns import Turns
from grpo.types import Group, Prompt, Rollout
from grpo.weights.sync import WeightMismatch
from rewards import verdict


class Rounded(FakeGenerators):
    """Computes what the learner computes, and a little more."""

    off = 0.02

    def score(self, sequences: Any) -> Callable[[], Any]:
        exact = super().score(sequences)
        return lambda: [[[value + self.off for value in row] for row in scores] for scores in exact()]


def pushing_of(generators: FakeGenerators, learner: FakeLearner, version: int, told: list[str]) -> Pushing:
    settings = config.TrainConfig.model_validate(
        {
            "policy": {"path": "somewhere", "dtype": "bfloat16"},
            "data": {"path": "rows.jsonl"},
            "run": {"folder": "run"},
            "train": {"steps": 9},
            "verifiers": [{"name": "exact", "use": "numeric"}],
        }
    )
    turns = Turns(learner, generators, enabled=False)
    sides: Any = (learner, generators, turns, type("NoRollouts", (), {"pushed": lambda self, version: None})())
    return Pushing(settings, *sides, [Prompt("0", "", (1, 2, 3), None, {})], "object_store", version, told.append)


def test_the_first_push_measures_and_later_pushes_use_it() -> None:
    told: list[str] = []
    learner, generators = FakeLearner(), Rounded(64)
    pushing = pushing_of(generators, learner, 0, told)
    assert pushing.push() == pytest.approx(0.02)
    (line,) = told
    differ = "before the first push, learner and generators differ by 0.02 nats for each probed token (bfloat16)"
    assert line == f"{differ}; a push may differ by 0.06"
    generators.off = 0.055
    assert pushing.push() == pytest.approx(0.055)
    generators.off = 0.065
    with pytest.raises(WeightMismatch, match=r"beyond 0\.06"):
        pushing.push()
    assert len(told) == 1


def test_a_resumed_run_whose_generators_loaded_another_policy_keeps_the_preset() -> None:
    """The first push gives them the weights, and proves it."""
    told: list[str] = []
    learner = FakeLearner(optimizer_steps=7)
    pushing = pushing_of(Rounded(64), learner, 7, told)
    assert pushing.push() == pytest.approx(0.02)
    assert "this is no rounding, so the tolerance of a push is 0.05" in told[0]


def test_a_resumed_run_measures_too() -> None:
    told: list[str] = []
    pushing = pushing_of(Rounded(64, weights=7), FakeLearner(optimizer_steps=7), 7, told)
    pushing.push()
    assert told[0].endswith("a push may differ by 0.06")


def test_a_probe_of_a_conversation_has_its_given_tokens_too() -> None:
    """Both sides score all tokens, whoever wrote them, up to `probe_tokens`."""
    pushing = pushing_of(Rounded(64), FakeLearner(), 0, [])
    talked = make_conversation([[3, 4], [5] * 300, [6]], [-1.0] * 3)
    group = Group(Prompt("0", "", (1, 2), None, {}), (Rollout(talked, {"a": verdict.correct()}, 1.0),))
    (probe,) = pushing._probe([group])
    longest = pushing._settings.weight_sync.probe_tokens
    assert probe == [1, 2, 3, 4, *[5] * 300, 6][:longest] and 5 in probe and len(probe) <= longest
