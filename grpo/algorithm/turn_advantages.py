"""Advantages of turns: credit for each turn of a conversation, where the environment rewards turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.algorithm.choices import advantages_of
from grpo.algorithm.minibatches import TokenAdvantages
from grpo.config.algorithm import AlgorithmConfig
from grpo.messages import Continuation
from grpo.types import Completion, Group


def turn_advantages(
    algorithm: AlgorithmConfig, groups: Sequence[Group], rewards_PG: Tensor, valid_PG: Tensor
) -> TokenAdvantages | None:
    """Return the advantages of sampled tokens by turns; None if `algorithm.turn_rewards` is not set.

    The return of turn t is R_t = r_t + discount R_(t + 1). The reward r_t of the last turn includes the reward of the
    whole rollout. The configured advantage then compares the returns of all turns of the group; with `group_std`:
    A_t = (R_t - mean(R)) / std(R). All tokens of a turn have its advantage.

    Process supervision of GRPO, Shao et al. 2024 (arXiv:2402.03300), section 4.1.3, with turns as steps. There, the
    rewards are normalised and then summed; here, the sums are normalised, so that a turn's advantage does not grow with
    the number of turns after it.

    Args:
        algorithm: section with the choices.
        groups: sampled groups.
        rewards_PG: float, rewards of the rollouts.
        valid_PG: bool, True if the reward is known.

    Returns:
        For each group and rollout, the advantage of each sampled token; None for a rollout without a known reward, and
        for the rollouts of a group in which the environment rewarded no turn.

    Raises:
        ValueError: a conversation has more turn rewards than turns.
    """
    if algorithm.turn_rewards is None:
        return None
    discount, rewards, valid = algorithm.turn_rewards.discount, rewards_PG.tolist(), valid_PG.tolist()
    rows: list[list[tuple[float, ...] | None]] = [[None] * len(group.rollouts) for group in groups]
    # The turns of a group stand in one row, as the completions of a group do for an advantage of completions.
    places, returns = [], []
    for row, group in enumerate(groups):
        completions = [rollout.completion for rollout in group.rollouts]
        if any(each.dialogue is not None and each.dialogue.reward.turns for each in completions):
            known = [column for column in range(len(completions)) if valid[row][column]]
            lengths = {column: turn_lengths(completions[column]) for column in known}
            places.append((row, lengths))
            returns.append(
                [
                    value
                    for column in known
                    for value in _returns(completions[column], len(lengths[column]), rewards[row][column], discount)
                ]
            )
    if not any(returns):
        return rows
    size = max(map(len, returns))
    values = torch.tensor([[*each, *[0.0] * (size - len(each))] for each in returns])
    mask = torch.tensor([[at < len(each) for at in range(size)] for each in returns])
    for (row, by_column), advantages in zip(places, advantages_of(algorithm, values, mask).tolist(), strict=True):
        remaining = iter(advantages)
        for column, lengths_K in by_column.items():
            turns = [(next(remaining),) * length for length in lengths_K]
            rows[row][column] = tuple(itertools.chain.from_iterable(turns))
    return rows


def turn_lengths(completion: Completion) -> list[int]:
    """Return the number of tokens of each turn of the policy, in all parts."""
    lengths = []
    parts: list[Completion | Continuation] = [completion, *completion.further]
    for part in parts:
        borders = [0, *itertools.chain.from_iterable(part.given), len(part.token_ids)]
        # A part may begin with a given range, which ends no turn.
        turns = [stop - start for start, stop in zip(borders[::2], borders[1::2], strict=True)]
        lengths += [length for length in turns if length]
    return lengths


def _returns(completion: Completion, turns: int, outcome: float, discount: float) -> list[float]:
    given = completion.dialogue.reward.turns if completion.dialogue else ()
    if len(given) > turns:
        raise ValueError(f"a conversation of {turns} turns has {len(given)} turn rewards; expected at most one each")
    # A turn that the environment did not answer, because the conversation ended there, has no reward.
    rewards = [*given, *[0.0] * (turns - len(given))]
    rewards[-1] += outcome
    sums = itertools.accumulate(reversed(rewards), lambda later, reward: reward + discount * later)
    return list(sums)[::-1]
