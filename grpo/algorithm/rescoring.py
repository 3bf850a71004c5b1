"""Compute log-probabilities of sampled completions under a policy that the learner holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from grpo.algorithm.choices import kl_estimate
from grpo.algorithm.minibatches import ProximalLogprobs, TokenAdvantages
from grpo.algorithm.packing import Microbatch, TrainingSequence, filler, pack
from grpo.algorithm.parts import joined, sequences_of
from grpo.algorithm.sharing import deal_out
from grpo.config import TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.types import Group

# The policy as it is now, the frozen reference, or the teacher.
Source = Literal["policy", "reference", "teacher"]


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Completions to score, packed for all ranks.

    Attributes:
        ranks: the microbatches of each rank. Every rank has the same number of microbatches.
        places: for each rank and microbatch, the numbers of the sequences in the microbatch, in order; empty if the
            microbatch is filler.
    """

    ranks: tuple[tuple[Microbatch, ...], ...]
    places: tuple[tuple[tuple[int, ...], ...], ...]


class Scorer(Protocol):
    """The part of the group of learner ranks that computes log-probabilities."""

    @property
    def ranks(self) -> int:
        """Number of data-parallel ranks."""

    def logprobs(self, batch: ScoringBatch, source: Source) -> Sequence[Sequence[Tensor]]:
        """Return, for each rank and microbatch, the log-probability of each predicted token, float32 [T]."""


def pack_for_scoring(sequences: Sequence[TrainingSequence], ranks: int, microbatch_tokens: int) -> ScoringBatch:
    """Pack sequences for all ranks, as `grpo.algorithm.minibatches.batch` packs them for training."""
    shares = deal_out(sequences, ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda sequence: sequence.prompt_length))
    return ScoringBatch(
        tuple(tuple(pack([sequences[i] for i in chosen] or [empty]) for chosen in share) for share in shares),
        tuple(tuple(tuple(chosen) for chosen in share) for share in shares),
    )


def unpack(batch: ScoringBatch, scored: Sequence[Sequence[Tensor]]) -> dict[int, tuple[float, ...]]:
    """Return the completions' log-probabilities, by the number of the sequence.

    Args:
        batch: scored batch.
        scored: for each rank and microbatch, the log-probability of each predicted token, float32 [T].
    """
    logprobs = {}
    for microbatches, places, values in zip(batch.ranks, batch.places, scored, strict=True):
        for microbatch, numbers, values_T in zip(microbatches, places, values, strict=True):
            rows = torch.split(values_T, microbatch.lengths_S.tolist())
            # A microbatch of filler has a row of values, but its sequence has no number.
            for number, row in zip(numbers, rows, strict=bool(numbers)):
                logprobs[number] = tuple(row.tolist())
    return logprobs


def rescore(
    settings: TrainConfig, learner: Scorer, groups: Sequence[Group], wanted_PG: Tensor, source: Source
) -> ProximalLogprobs:
    """Compute the log-probabilities of sampled tokens for each group and rollout; None if `wanted_PG` is False."""
    scores: list[list[tuple[float, ...] | None]] = [[None] * len(group.rollouts) for group in groups]
    numbers: dict[tuple[int, int], range] = {}
    sequences: list[TrainingSequence] = []
    for row, column in wanted_PG.nonzero().tolist():
        begin = len(sequences)
        sequences += sequences_of(groups[row].prompt, groups[row].rollouts[column].completion, 0.0)
        numbers[row, column] = range(begin, len(sequences))
    if sequences:
        batch = pack_for_scoring(sequences, learner.ranks, settings.learner.microbatch_tokens)
        scored = unpack(batch, learner.logprobs(batch, source))
        for (row, column), parts in numbers.items():
            scores[row][column] = joined([scored[number] for number in parts])
    return scores


def proximal_logprobs(
    settings: TrainConfig,
    learner: Scorer,
    groups: Sequence[Group],
    advantages_PG: Tensor,
    carries_loss_PG: Tensor,
    token_advantages: TokenAdvantages | None = None,
) -> ProximalLogprobs | None:
    """Compute log-probabilities under the learner before the step's first update.

    Return None if the ratio is relative to the sampler, because these log-probabilities are then not needed.
    """
    algorithm = settings.algorithm
    if algorithm.proximal == "rollout":
        return None
    computed_PG = advantages_PG != 0 if algorithm.only_advantages_teach else torch.ones_like(carries_loss_PG)
    if algorithm.only_advantages_teach and token_advantages is not None:
        for row, by_token_G in enumerate(token_advantages):
            for column, by_token in enumerate(by_token_G):
                if by_token is not None:
                    computed_PG[row, column] = any(by_token)
    return rescore(settings, learner, groups, carries_loss_PG & computed_PG, "policy")


def kl_to_reference(settings: TrainConfig, learner: Scorer, groups: Sequence[Group], valid_PG: Tensor) -> Tensor:
    """Return KL(sampler || reference) of each completion, summed over the tokens: [P, G].

    All values are 0 if the rewards do not include this divergence.
    """
    algorithm = settings.algorithm
    if not algorithm.kl_in_reward:
        return torch.zeros(valid_PG.shape)
    reference = rescore(settings, learner, groups, valid_PG, "reference")
    return divergences(groups, reference, tuple(valid_PG.shape), algorithm)


def divergences(
    groups: Sequence[Group],
    reference: ProximalLogprobs,
    shape: tuple[int, ...],
    algorithm: AlgorithmConfig,
) -> Tensor:
    """Return KL(sampler || reference) of each completion, summed over the sampled tokens: float32.

    The value is 0 if `reference` has no log-probabilities of the completion.
    """
    sums_PG = torch.zeros(shape)
    for row, (group, reference_G) in enumerate(zip(groups, reference, strict=True)):
        for column, (rollout, logprobs) in enumerate(zip(group.rollouts, reference_G, strict=True)):
            if logprobs is not None:
                sampled_T = torch.tensor(rollout.completion.sampled_logprobs)
                sums_PG[row, column] = kl_estimate(algorithm, sampled_T, torch.tensor(logprobs)).sum()
    return sums_PG
