"""Log-probabilities of completions that were sampled elsewhere, under a policy that the learner holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from grpo.algorithm.choices import kl_estimate
from grpo.algorithm.minibatches import ProximalLogprobs
from grpo.algorithm.packing import Microbatch, TrainingSequence, deal_out, filler, pack
from grpo.config import TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.types import Group

# The policy as it is now, or the frozen reference.
Source = Literal["policy", "reference"]


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Completions to score, packed for all ranks.

    Attributes:
        ranks: [rank] -> microbatches, as many for each.
        places: [rank][microbatch] -> number of each of its sequences, in the order in which they lie there; none for a
            microbatch of filler.
    """

    ranks: tuple[tuple[Microbatch, ...], ...]
    places: tuple[tuple[tuple[int, ...], ...], ...]


class Scorer(Protocol):
    """All learner ranks."""

    @property
    def ranks(self) -> int:
        """Data-parallel ranks."""

    def logprobs(self, batch: ScoringBatch, source: Source) -> Sequence[Sequence[Tensor]]:
        """[rank][microbatch] -> log-probability of each position's target, float32 [T]."""


def pack_for_scoring(sequences: Sequence[TrainingSequence], ranks: int, microbatch_tokens: int) -> ScoringBatch:
    """Pack sequences as `grpo.algorithm.minibatches.batch` does."""
    shares = deal_out(sequences, ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda one: one.prompt_length))
    return ScoringBatch(
        tuple(tuple(pack([sequences[i] for i in chosen] or [empty]) for chosen in share) for share in shares),
        tuple(tuple(tuple(chosen) for chosen in share) for share in shares),
    )


def unpack(batch: ScoringBatch, scored: Sequence[Sequence[Tensor]]) -> dict[int, tuple[float, ...]]:
    """The completions' log-probabilities by the number of their sequence.

    Args:
        batch: what was scored.
        scored: [rank][microbatch] -> log-probability of each position's target, float32 [T].
    """
    found = {}
    for microbatches, places, values in zip(batch.ranks, batch.places, scored, strict=True):
        for microbatch, numbers, values_T in zip(microbatches, places, values, strict=True):
            rows = torch.split(values_T, microbatch.lengths_S.tolist())
            # A microbatch of filler has a row and no number.
            for number, row in zip(numbers, rows, strict=bool(numbers)):
                found[number] = tuple(row.tolist())
    return found


def rescore(
    settings: TrainConfig, learner: Scorer, groups: Sequence[Group], wanted_PG: Tensor, source: Source
) -> ProximalLogprobs:
    """Log-probabilities of the wanted rollouts' completion tokens: [group][rollout], None where not wanted."""
    found: list[list[tuple[float, ...] | None]] = [[None] * len(group.rollouts) for group in groups]
    where = [(row, column) for row, column in wanted_PG.nonzero().tolist()]
    sequences = []
    for row, column in where:
        prompt, sampled = groups[row].prompt.token_ids, groups[row].rollouts[column].completion
        sequences.append(TrainingSequence((*prompt, *sampled.token_ids), len(prompt), sampled.logprobs, 0.0))
    if sequences:
        batch = pack_for_scoring(sequences, learner.ranks, settings.learner.microbatch_tokens)
        for number, logprobs in unpack(batch, learner.logprobs(batch, source)).items():
            row, column = where[number]
            found[row][column] = logprobs
    return found


def proximal_logprobs(
    settings: TrainConfig, learner: Scorer, groups: Sequence[Group], advantages_PG: Tensor, carries_loss_PG: Tensor
) -> ProximalLogprobs | None:
    """What the learner makes of the completions before the first update; None where the ratio is to the sampler."""
    algorithm = settings.algorithm
    if algorithm.proximal == "rollout":
        return None
    computed_PG = advantages_PG != 0 if algorithm.only_advantages_teach else torch.ones_like(carries_loss_PG)
    return rescore(settings, learner, groups, carries_loss_PG & computed_PG, "policy")


def kl_to_reference(settings: TrainConfig, learner: Scorer, groups: Sequence[Group], valid_PG: Tensor) -> Tensor:
    """KL(sampler || reference) of each completion, summed over its tokens: [P, G], 0 where no reward needs it."""
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
    """KL(sampler || reference) of each completion, summed over its tokens: float32, 0 where it was not scored."""
    sums_PG = torch.zeros(shape)
    for row, (group, reference_G) in enumerate(zip(groups, reference, strict=True)):
        for column, (rollout, logprobs) in enumerate(zip(group.rollouts, reference_G, strict=True)):
            if logprobs is not None:
                sampled_T = torch.tensor(rollout.completion.logprobs)
                sums_PG[row, column] = kl_estimate(algorithm, sampled_T, torch.tensor(logprobs)).sum()
    return sums_PG
