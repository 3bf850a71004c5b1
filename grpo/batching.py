"""From groups and advantages to what each learner rank gets for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo.attention import length_batches
from grpo.packing import Microbatch, TrainingSequence, filler, pack, sharing_units, split_evenly
from grpo.types import Group


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One rank's part of one optimizer step.

    Attributes:
        microbatches: packed; every rank has the same number.
        trained_tokens: completion tokens of the whole global batch, which is the loss's denominator. Tokens without
            advantage count although they need not be computed.
    """

    microbatches: tuple[Microbatch, ...]
    trained_tokens: int


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
) -> Iterator[TrainBatch]:
    """Cut a step's groups into `count` optimizer steps of whole groups.

    Rollouts without a reward are left out altogether. Those whose advantage is exactly 0 add nothing to the gradient
    of a loss that is a multiple of the advantage; `skip_without_advantage` spares computing them while their tokens
    still count in the denominator, so that the gradient is the same to the last digit. It must be off where the
    loss has another term (a KL penalty).

    Args:
        groups: what was sampled.
        advantages_PG: of their rollouts; columns beyond a shorter group's rollouts are not read.
        count: optimizer steps.
        ranks: data-parallel ranks.
        microbatch_tokens: tokens that one microbatch may hold.
        skip_without_advantage: leave rollouts out that add nothing.

    Yields:
        One batch for each optimizer step; none where no rollout of its groups has a reward.
    """
    per_batch = -(-len(groups) // count)
    for start in range(0, len(groups), per_batch):
        sequences = []
        for group, advantages_G in zip(
            groups[start : start + per_batch], advantages_PG[start : start + per_batch].tolist(), strict=True
        ):
            prompt = group.prompt.token_ids
            for rollout, advantage in zip(group.rollouts, advantages_G[: len(group.rollouts)], strict=True):
                if rollout.reward is not None:
                    sampled = rollout.completion
                    sequences.append(
                        TrainingSequence((*prompt, *sampled.token_ids), len(prompt), sampled.logprobs, advantage)
                    )
        if sequences:
            computed = [one for one in sequences if one.advantage != 0.0] if skip_without_advantage else sequences
            yield batch(
                # A batch without any advantage still is an optimizer step, of a gradient of zero.
                computed or [filler(sequences[0])],
                trained_tokens=sum(one.trained_tokens for one in sequences),
                ranks=ranks,
                microbatch_tokens=microbatch_tokens,
            )


def batch(
    sequences: Sequence[TrainingSequence], *, trained_tokens: int, ranks: int, microbatch_tokens: int
) -> TrainBatch:
    """Pack sequences for all ranks, evenly, each rank the same number of microbatches.

    Completions of one prompt stay together, so that it is computed once, as far as that lets work be dealt out evenly.
    """
    total = sum(len(one.token_ids) for one in sequences)
    # Quarters of what a rank or a microbatch takes are small enough to deal out evenly.
    units = sharing_units(sequences, min(microbatch_tokens, total // ranks) // 4)
    shares = split_evenly([tokens for _, tokens in units], ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda one: one.prompt_length))
    parts = tuple(
        RankBatch(
            tuple(
                pack([sequences[index] for unit in chosen for index in units[unit][0]] or [empty])
                for chosen in microbatches
            ),
            trained_tokens,
        )
        for microbatches in shares
    )
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
