"""Make the batch of each learner rank for each optimizer step, from groups and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo.algorithm.aggregation import token_mean
from grpo.algorithm.contracts import Aggregation
from grpo.algorithm.packing import Microbatch, TrainingSequence, filler, length_batches, pack
from grpo.algorithm.parts import sequences_of
from grpo.algorithm.sharing import deal_out
from grpo.types import Group

# For each group and rollout: the log-probabilities of the completion's sampled tokens (in the order of
# `Completion.sampled_logprobs`), or None if they were not needed.
ProximalLogprobs = Sequence[Sequence[tuple[float, ...] | None]]
# For each group and rollout: the advantages of the completion's sampled tokens, or None if the rollout has a single
# advantage.
TokenAdvantages = Sequence[Sequence[tuple[float, ...] | None]]


@dataclass(frozen=True, slots=True)
class RankBatch:
    """A single rank's part of the batch of an optimizer step.

    Attributes:
        microbatches: packed microbatches. Every rank has the same number of microbatches.
        denominator: denominator of the loss of the whole global batch (`grpo.algorithm.aggregation`). Tokens with
            advantage 0 count too, although the model need not compute them.
    """

    microbatches: tuple[Microbatch, ...]
    denominator: float


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """The batch of an optimizer step for the whole learner.

    Attributes:
        ranks: the part of each rank.
        padding_share: share of padding and filler among the positions that attention computes.
        shared_share: share of the sequences' tokens that the model need not compute. These are the repeated tokens of
            shared prompts, and the last token of each sequence.
    """

    ranks: tuple[RankBatch, ...]
    padding_share: float
    shared_share: float

    def shares(self) -> dict[str, float]:
        """Return both shares as metrics."""
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
    token_advantages: TokenAdvantages | None = None,
) -> Iterator[TrainBatch]:
    """Divide a training step's groups into `count` optimizer steps of whole groups.

    The batches omit rollouts that carry no loss, and groups that have only such rollouts. If the loss is a multiple of
    the advantage, a rollout with advantage 0 adds nothing to the gradient. If `skip_without_advantage` is true, the
    model does not compute these rollouts. These rollouts still count in the denominator, so the gradient is the same to
    the last digit. `skip_without_advantage` must be false if the loss has another term (a KL penalty, an entropy
    bonus).

    Args:
        groups: sampled groups.
        advantages_PG: advantages of the rollouts. If a group has fewer rollouts than columns, the last columns are not
            read.
        count: number of optimizer steps.
        ranks: number of data-parallel ranks.
        microbatch_tokens: largest size of a microbatch, in tokens.
        skip_without_advantage: True to omit rollouts with advantage 0.
        carries_loss_PG: bool, True for each rollout that carries loss; by default, for each rollout with a reward.
        proximal: for each group and rollout, the log-probabilities of the completion under the learner at the start of
            the step, or None if they were not needed. The whole argument is None if the ratio is relative to the
            sampler.
        aggregation: function that computes the weights of tokens. The length of a rollout is its number of sampled
            tokens.
        token_advantages: for each group and rollout, advantages of the sampled tokens that replace the rollout's
            advantage, or None.

    Yields:
        A batch for each optimizer step. An optimizer step is omitted if no rollout of its groups carries loss.
    """
    if carries_loss_PG is None:
        carries = [[rollout.reward is not None for rollout in group.rollouts] for group in groups]
    else:
        carries = [row[: len(group.rollouts)] for group, row in zip(groups, carries_loss_PG.tolist(), strict=True)]
    remaining = [place for place, row in enumerate(carries) if any(row)]
    advantages = advantages_PG.tolist()
    for number in range(count):
        places = remaining[number * len(remaining) // count : (number + 1) * len(remaining) // count]
        if not places:
            continue
        weights, denominator = aggregation([_trained_lengths(groups[place], carries[place]) for place in places])
        sequences = [
            sequence
            for place, weights_G in zip(places, weights, strict=True)
            for sequence in _sequences(
                groups[place],
                advantages[place],
                weights_G,
                proximal[place] if proximal is not None else None,
                token_advantages[place] if token_advantages is not None else None,
            )
        ]
        if sequences:
            computed = [item for item in sequences if not (skip_without_advantage and item.without_advantage)]
            yield batch(
                # A batch without any advantage is still an optimizer step, with a gradient of zero.
                computed or [filler(sequences[0])],
                denominator=denominator,
                ranks=ranks,
                microbatch_tokens=microbatch_tokens,
            )


def _trained_lengths(group: Group, carries_G: Sequence[bool]) -> list[int]:
    rollouts = zip(group.rollouts, carries_G, strict=True)
    return [rollout.completion.sampled_tokens if carried else 0 for rollout, carried in rollouts]


def _sequences(
    group: Group,
    advantages_G: Sequence[float],
    weights_G: Sequence[float],
    proximal_G: Sequence[tuple[float, ...] | None] | None,
    by_token_G: Sequence[tuple[float, ...] | None] | None,
) -> Iterator[TrainingSequence]:
    size = len(group.rollouts)
    proximal_G, by_token_G = proximal_G or [None] * size, by_token_G or [None] * size
    for rollout, advantage, weight, proximal, by_token in zip(
        group.rollouts, advantages_G[:size], weights_G, proximal_G, by_token_G, strict=True
    ):
        if weight:
            chosen = advantage if by_token is None else by_token
            yield from sequences_of(group.prompt, rollout.completion, chosen, weight, proximal)


def batch(
    sequences: Sequence[TrainingSequence], *, denominator: float, ranks: int, microbatch_tokens: int
) -> TrainBatch:
    """Pack sequences and distribute them evenly over all ranks. Each rank gets the same number of microbatches."""
    shares = deal_out(sequences, ranks, microbatch_tokens)
    empty = filler(min(sequences, key=lambda sequence: sequence.prompt_length))
    microbatches = [
        [pack([sequences[index] for index in chosen] or [empty]) for chosen in microbatches] for microbatches in shares
    ]
    trained = [sequence for sequence in sequences if sequence.trained_tokens]
    return train_batch(microbatches, sequences, trained, denominator=denominator)


def train_batch(
    microbatches: Sequence[Sequence[Microbatch]],
    sequences: Sequence[TrainingSequence],
    trained: Sequence[TrainingSequence],
    *,
    denominator: float,
) -> TrainBatch:
    """Make the batch of an optimizer step.

    Args:
        microbatches: packed microbatches of each rank.
        sequences: sequences in the microbatches.
        trained: the sequences among them that carry loss.
        denominator: denominator of the loss of the whole batch.
    """
    parts = tuple(RankBatch(tuple(each), denominator) for each in microbatches)
    total = sum(len(sequence.token_ids) for sequence in sequences)
    packed = [microbatch for part in parts for microbatch in part.microbatches]
    real = sum(len(sequence.token_ids) - 1 for sequence in trained)
    return TrainBatch(
        parts,
        padding_share=1.0 - real / sum(_attended(microbatch) for microbatch in packed),
        shared_share=max(0.0, 1.0 - sum(len(microbatch.input_ids_N) for microbatch in packed) / total),
    )


def _attended(microbatch: Microbatch) -> int:
    lengths = sorted(place.length for place in microbatch.places)
    return sum((stop - start) * lengths[stop - 1] for start, stop in length_batches(lengths))
