"""Rewards that are normalised apart: a loud reward does not drown a quiet one."""

from __future__ import annotations

import math

import pytest
import torch

from grpo.algorithm.reward_models.apart import rewards_apart
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards.build import VerifierSpec
from rewards.verdict import Verdict, correct, error, scored, wrong


def group_of_verdicts(verdicts: list[dict[str, Verdict]]) -> Group:
    completion = Completion((1,), (0.0,), "", "stop", (VersionSpan(0, 1, 0),))
    return Group(Prompt("p", "?", (1,), "0", {}), tuple(Rollout(completion, each, 0.0) for each in verdicts))


def test_each_reward_is_normalised_by_hand() -> None:
    weights = {"loud": 1.0, "quiet": -2.0, "off": 0.0}
    specs = [VerifierSpec(name, "x", weight=weight) for name, weight in weights.items()]
    rows = [(100.0, 0.1), (0.0, 0.1), (100.0, 0.3), (0.0, 0.3)]
    group = group_of_verdicts(
        [{"loud": scored(loud), "quiet": scored(quiet), "off": error("broken")} for loud, quiet in rows]
    )
    found = rewards_apart(specs, [group], torch.ones(1, 4, dtype=torch.bool))
    # Each has two values, half of the group each: (x - mean) / std is +-sqrt(3)/2.
    unit = math.sqrt(3) / 2
    assert found[0].tolist() == pytest.approx([unit + 2 * unit, -unit + 2 * unit, unit - 2 * unit, -unit - 2 * unit])


def test_gates_conditions_and_failures_count() -> None:
    gate = VerifierSpec("gate", "x", weight=0.0, gate=True)
    part, other = VerifierSpec("part", "x"), VerifierSpec("other", "x", when={"kind": ("b",)})
    group = group_of_verdicts(
        [
            {"gate": correct(), "part": scored(1.0)},
            {"gate": correct(), "part": scored(0.0)},
            {"gate": wrong(), "part": scored(1.0)},
            {"gate": correct(), "part": error("died")},
        ]
    )
    valid_PG = torch.tensor([[True, True, True, False]])
    found = rewards_apart([gate, part, other], [group], valid_PG)[0].tolist()
    # A closed gate leaves 0, and the failed verdict does not count in the mean of 1, 0, 0.
    std = math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2)
    assert found == pytest.approx([2 / 3 / std, -1 / 3 / std, -1 / 3 / std, 0.0])
