"""Advantages of turns: discounted returns, compared with all turns of the group."""

from __future__ import annotations

import statistics

import pytest
import torch
from conversations.made_up import make_continuation, make_conversation, make_dialogue

from grpo.algorithm.turn_advantages import turn_advantages, turn_lengths
from grpo.config.algorithm import AlgorithmConfig
from grpo.messages import WorldReward
from grpo.types import Completion, Group, Prompt, Rollout
from rewards import verdict

HALF = AlgorithmConfig.model_validate({"turn_rewards": {"discount": 0.5}})


def talk(turns: tuple[float, ...]) -> Completion:
    """Turns of 2, 1 and 3 tokens, the last in a further part."""
    further = (make_continuation([1, 9], [[7, 7, 7]], [-1.0] * 3),)
    return make_conversation(
        [[3, 4], [5, 5], [6]], [-1.0] * 3, make_dialogue(reward=WorldReward(turns=turns), further=further)
    )


def group_of(*completions: Completion) -> Group:
    rollouts = [Rollout(each, {"a": verdict.correct()}, 1.0) for each in completions]
    return Group(Prompt("p", "?", (1,), "0", {}), tuple(rollouts))


def test_returns_are_discounted_and_normalised_over_the_turns_of_the_group() -> None:
    groups = [group_of(talk((1.0, 0.0, 2.0)), talk((0.0, 1.0))), group_of(talk(()), talk(()))]
    assert turn_lengths(groups[0].rollouts[0].completion) == [2, 1, 3]
    rewards_PG = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    found = turn_advantages(HALF, groups, rewards_PG, torch.ones(2, 2, dtype=torch.bool))
    assert found is not None and list(found[1]) == [None, None]
    # From the last turn: 2 + 1 = 3, 0 + 3 / 2, 1 + 1.5 / 2; then 0.5, 1 + 0.5 / 2, 1.25 / 2.
    returns = [1.75, 1.5, 3.0, 0.625, 1.25, 0.5]
    mean, std = statistics.mean(returns), statistics.stdev(returns)
    by_turn = [(value - mean) / std for value in returns]
    for rollout, turns in zip(found[0], (by_turn[:3], by_turn[3:]), strict=True):
        assert rollout == pytest.approx([turns[0]] * 2 + [turns[1]] + [turns[2]] * 3)


def test_a_rollout_without_a_reward_is_not_compared() -> None:
    groups = [group_of(talk((1.0, 0.0, 2.0)), talk((50.0, 50.0, 50.0)))]
    found = turn_advantages(HALF, groups, torch.tensor([[1.0, 9.0]]), torch.tensor([[True, False]]))
    assert found is not None and found[0][1] is None
    assert found[0][0] is not None and sum(found[0][0][at] for at in (0, 2, 3)) == pytest.approx(0, abs=1e-6)


def test_nothing_happens_unless_the_key_is_set() -> None:
    groups = [group_of(talk((1.0, 0.0, 2.0)))]
    assert turn_advantages(AlgorithmConfig(), groups, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)) is None
    with pytest.raises(ValueError, match="3 turns has 4 turn rewards"):
        turn_advantages(HALF, [group_of(talk((1.0,) * 4))], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
