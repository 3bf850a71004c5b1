"""Log-probabilities of completions that were sampled elsewhere, under a policy that the learner holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo.losses import kl_estimate
from grpo.packing import Microbatch, TrainingSequence, filler, pack, split_evenly
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


def pack_for_scoring(sequences: Sequence[TrainingSequence], ranks: int, microbatch_tokens: int) -> ScoringBatch:
    """Pack sequences as `grpo.batching.batch` does."""
    lengths = [len(one.token_ids) for one in sequences]
    shares = split_evenly(lengths, ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda one: one.prompt_length))
    return ScoringBatch(
        tuple(tuple(pack([sequences[i] for i in chosen] or [empty]) for chosen in share) for share in shares),
        # pack() lays the sequences out shortest first.
        tuple(tuple(tuple(sorted(chosen, key=lengths.__getitem__)) for chosen in share) for share in shares),
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
            lengths = microbatch.lengths_S.tolist()
            rows = torch.split(values_T, lengths)
            masks = torch.split(microbatch.weights_T > 0, lengths)
            # A microbatch of filler has a row and no number.
            for number, row, mask in zip(numbers, rows, masks, strict=bool(numbers)):
                found[number] = tuple(row[mask].tolist())
    return found


def rescore(
    groups: Sequence[Group],
    wanted_PG: Tensor,
    score: Callable[[ScoringBatch], Sequence[Sequence[Tensor]]],
    *,
    ranks: int,
    microbatch_tokens: int,
) -> list[list[tuple[float, ...] | None]]:
    """Log-probabilities of the wanted rollouts' completion tokens: [group][rollout], None where not wanted.

    Args:
        groups: what was sampled.
        wanted_PG: bool, which rollouts.
        score: the learner's; [rank][microbatch] -> log-probability of each position's target.
        ranks: data-parallel ranks.
        microbatch_tokens: tokens that one microbatch may hold.
    """
    found: list[list[tuple[float, ...] | None]] = [[None] * len(group.rollouts) for group in groups]
    where = [(row, column) for row, column in wanted_PG.nonzero().tolist()]
    sequences = []
    for row, column in where:
        prompt, sampled = groups[row].prompt.token_ids, groups[row].rollouts[column].completion
        sequences.append(TrainingSequence((*prompt, *sampled.token_ids), len(prompt), sampled.logprobs, 0.0))
    if sequences:
        batch = pack_for_scoring(sequences, ranks, microbatch_tokens)
        for number, logprobs in unpack(batch, score(batch)).items():
            row, column = where[number]
            found[row][column] = logprobs
    return found


def divergences(
    groups: Sequence[Group],
    reference: Sequence[Sequence[tuple[float, ...] | None]],
    shape: tuple[int, ...],
    estimate: Literal["k1", "k2", "k3"],
) -> Tensor:
    """KL(sampler || reference) of each completion, summed over its tokens: float32, 0 where it was not scored."""
    sums_PG = torch.zeros(shape)
    for row, (group, reference_G) in enumerate(zip(groups, reference, strict=True)):
        for column, (rollout, logprobs) in enumerate(zip(group.rollouts, reference_G, strict=True)):
            if logprobs is not None:
                sampled_T = torch.tensor(rollout.completion.logprobs)
                sums_PG[row, column] = kl_estimate(sampled_T, torch.tensor(logprobs), estimate).sum()
    return sums_PG
