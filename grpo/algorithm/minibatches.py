"""From groups and advantages to what each learner rank gets for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo.algorithm.aggregation import token_mean
from grpo.algorithm.contracts import Aggregation
from grpo.algorithm.packing import Microbatch, TrainingSequence, deal_out, filler, length_batches, pack
from grpo.types import Group

# [group][rollout] -> log-probabilities of a completion's tokens; None where they were not needed.
ProximalLogprobs = Sequence[Sequence[tuple[float, ...] | None]]


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One rank's part of one optimizer step.

    Attributes:
        microbatches: packed; every rank has the same number.
        denominator: of the whole global batch's loss (`grpo.algorithm.aggregation`). Tokens without advantage count
            although they need not be computed.
    """

    microbatches: tuple[Microbatch, ...]
    denominator: float


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One optimizer step of the whole learner.

    Attributes:
        ranks: one part for each rank.
        padding_share: of all positions that attention computes, how many are padding or filler.
        shared_share: of all tokens of the sequences, how many need no computing, since another completion of the same
            prompt shares them or nothing follows them.
    """

    ranks: tuple[RankBatch, ...]
    padding_share: float
    shared_share: float

    def shares(self) -> dict[str, float]:
        """What packing wasted and saved, as metrics."""
        return {"padding_share": self.padding_share, "shared_share": self.shared_share}


def minibatches(
    groups: Sequence[Group],
    advantages_PG: Tensor,
    *,
    count: int,
    ranks: int,
    microbatch_tokens: int,
    skip_without_advantage: bool,
    carries_loss_PG: Tensor | None = None,
    proximal: ProximalLogprobs | None = None,
    aggregation: Aggregation = token_mean,
) -> Iterator[TrainBatch]:
    """Cut a step's groups into `count` optimizer steps of whole groups.

    Rollouts that carry no loss, and groups of such only, are left out altogether. Those whose advantage is exactly 0
    add nothing to the gradient of a loss that is a multiple of the advantage; `skip_without_advantage` spares
    computing them while they still count in the denominator, so that the gradient is the same to the last digit. It
    must be off where the loss has another term (a KL penalty, an entropy bonus).

    Args:
        groups: what was sampled.
        advantages_PG: of their rollouts; columns beyond a shorter group's rollouts are not read.
        count: optimizer steps.
        ranks: data-parallel ranks.
        microbatch_tokens: tokens that one microbatch may hold.
        skip_without_advantage: leave rollouts out that add nothing.
        carries_loss_PG: bool, which rollouts take part; by default those with a reward.
        proximal: [group][rollout] -> log-probabilities of the completion under the learner at the start of the step,
            None where they were not needed; None where the ratio is to the sampler.
        aggregation: how tokens are weighted against each other.

    Yields:
        One batch for each optimizer step; none where no rollout of its groups carries loss.
    """
    if carries_loss_PG is None:
        carries = [[rollout.reward is not None for rollout in group.rollouts] for group in groups]
    else:
        carries = [row[: len(group.rollouts)] for group, row in zip(groups, carries_loss_PG.tolist(), strict=True)]
    left = [place for place, row in enumerate(carries) if any(row)]
    advantages = advantages_PG.tolist()
    for number in range(count):
        places = left[number * len(left) // count : (number + 1) * len(left) // count]
        if not places:
            continue
        lengths = [
            [
                len(rollout.completion.token_ids) if carried else 0
                for rollout, carried in zip(groups[place].rollouts, carries[place], strict=True)
            ]
            for place in places
        ]
        weights, denominator = aggregation(lengths)
        sequences = [
            sequence
            for place, weights_G in zip(places, weights, strict=True)
            for sequence in _sequences(
                groups[place], advantages[place], weights_G, proximal[place] if proximal is not None else None
            )
        ]
        if sequences:
            computed = [one for one in sequences if one.advantage != 0.0] if skip_without_advantage else sequences
            yield batch(
                # A batch without any advantage still is an optimizer step, of a gradient of zero.
                computed or [filler(sequences[0])],
                denominator=denominator,
                ranks=ranks,
                microbatch_tokens=microbatch_tokens,
            )


def _sequences(
    group: Group,
    advantages_G: Sequence[float],
    weights_G: Sequence[float],
    proximal_G: Sequence[tuple[float, ...] | None] | None,
) -> Iterator[TrainingSequence]:
    prompt, size = group.prompt.token_ids, len(group.rollouts)
    proximal_G = proximal_G or [None] * size
    for rollout, advantage, weight, proximal in zip(
        group.rollouts, advantages_G[:size], weights_G, proximal_G, strict=True
    ):
        if weight:
            sampled = rollout.completion
            tokens = (*prompt, *sampled.token_ids)
            yield TrainingSequence(tokens, len(prompt), sampled.logprobs, advantage, weight, proximal)


def batch(
    sequences: Sequence[TrainingSequence], *, denominator: float, ranks: int, microbatch_tokens: int
) -> TrainBatch:
    """Pack sequences for all ranks, evenly, each rank the same number of microbatches."""
    shares = deal_out(sequences, ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda one: one.prompt_length))
    parts = tuple(
        RankBatch(
            tuple(pack([sequences[index] for index in chosen] or [empty]) for chosen in microbatches), denominator
        )
        for microbatches in shares
    )
    total = sum(len(one.token_ids) for one in sequences)
    packed = [one for part in parts for one in part.microbatches]
    real = sum(len(one.token_ids) - 1 for one in sequences if one.weight)
    return TrainBatch(
        parts,
        padding_share=1.0 - real / sum(_attended(one) for one in packed),
        shared_share=max(0.0, 1.0 - sum(len(one.input_ids_N) for one in packed) / total),
    )


def _attended(microbatch: Microbatch) -> int:
    lengths = sorted(place.length for place in microbatch.places)
    return sum((stop - start) * lengths[stop - 1] for start, stop in length_batches(lengths))
