"""Process supervision: rewards of steps inside a completion, and the advantages of tokens that follow from them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grpo.algorithm.choices import advantages_of
from grpo.algorithm.minibatches import TokenAdvantages
from grpo.config.algorithm import AlgorithmConfig
from grpo.types import Completion, Group
from rewards.build import VerifierSpec
from rewards.compose import StepReward, step_rewards
from rewards.selection import choose

# Decodes tokens to text, with the policy's tokenizer and with special tokens.
Decode = Callable[[Sequence[int]], str]


def process_advantages(
    algorithm: AlgorithmConfig,
    groups: Sequence[Group],
    valid_PG: Tensor,
    specs: Sequence[VerifierSpec],
    ends: TokenEnds,
) -> TokenAdvantages:
    """Return the advantages of sampled tokens from the rewards of steps.

    The rewards of all steps of a group are normalised together: r~ = (r - mean(r)) / std(r) with `group_std`, and as
    the configured advantage does otherwise. The advantage of a token is the sum of r~ over the steps of its completion
    that end at the token or after it.

    Process supervision of GRPO, Shao et al. 2024 (arXiv:2402.03300), section 4.1.3.

    Args:
        algorithm: section with the choice of the advantage.
        groups: sampled groups of single turns.
        valid_PG: bool, True if the reward of the rollout is known.
        specs: the run's verifiers.
        ends: finds the token in which a step ends.

    Returns:
        For each group and rollout, the advantage of each sampled token; None for a rollout without a known reward.

    Raises:
        ValueError: a span lies outside its completion.
    """
    valid = valid_PG.tolist()
    rows: list[list[tuple[float, ...] | None]] = [[None] * len(group.rollouts) for group in groups]
    # The steps of a group stand in one row, as the completions of a group do for an advantage of completions.
    steps: list[list[tuple[int, StepReward]]] = []
    for row, group in enumerate(groups):
        chosen = choose(specs, group.prompt.row)
        steps.append(
            [
                (column, step)
                for column, rollout in enumerate(group.rollouts)
                if valid[row][column]
                for step in step_rewards(chosen, rollout.verdicts)
            ]
        )
    size = max(map(len, steps))
    if not size:
        return rows
    values = torch.tensor([[*(step.value for _, step in each), *[0.0] * (size - len(each))] for each in steps])
    mask = torch.tensor([[at < len(each) for at in range(size)] for each in steps])
    for row, (each, advantages) in enumerate(zip(steps, advantages_of(algorithm, values, mask).tolist(), strict=True)):
        sums: dict[int, list[float]] = {}
        for (column, step), advantage in zip(each, advantages[: len(each)], strict=True):
            completion = groups[row].rollouts[column].completion
            by_end = sums.setdefault(column, [0.0] * len(completion.token_ids))
            by_end[ends.last_token(completion, step.stop)] += advantage
        for column, by_end in sums.items():
            rows[row][column] = tuple(itertools.accumulate(reversed(by_end)))[::-1]
    return rows


class TokenEnds:
    """Finds the token of a completion in which a range of its characters ends."""

    def __init__(self, decode: Decode) -> None:
        """Remember the text of each token, as most completions are the texts of their tokens, joined."""
        self._decode = decode
        self._pieces: dict[int, str] = {}
        self._known: tuple[Completion | None, list[int]] = None, []

    def last_token(self, completion: Completion, stop: int | None) -> int:
        """Return the index of the token that holds the character before `stop`; None is the last token.

        Raises:
            ValueError: the completion's text has fewer characters.
        """
        last = len(completion.token_ids) - 1
        if stop is None:
            return last
        if stop > len(completion.text):
            raise ValueError(
                f"a verifier scored characters up to {stop} of a completion that has {len(completion.text)}; spans are "
                "ranges [start, stop) of the text that the verifier gets"
            )
        if self._known[0] is not completion:
            self._known = completion, self._character_ends(completion)
        return min(bisect.bisect_left(self._known[1], stop), last)

    def _character_ends(self, completion: Completion) -> list[int]:
        """Return, for each token, the number of characters up to its end."""
        for token in completion.token_ids:
            if token not in self._pieces:
                self._pieces[token] = self._decode([token])
        pieces = [self._pieces[token] for token in completion.token_ids]
        # The text of a completion is without its end-of-sequence token.
        for count in (len(pieces), len(pieces) - 1):
            if "".join(pieces[:count]) == completion.text:
                return list(itertools.accumulate(map(len, pieces)))
        # Otherwise a token's text depends on its neighbours, as for a character of several tokens.
        return [self._length(completion, count) for count in range(1, len(pieces) + 1)]

    def _length(self, completion: Completion, count: int) -> int:
        """Return how many characters of the text are complete after `count` tokens."""
        begun = self._decode(completion.token_ids[:count])
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(begun, completion.text, strict=False))
        return sum(1 for _ in same)
