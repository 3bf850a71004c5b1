"""Comparisons of answers to the same prompt, and the batch of an optimizer step of comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from grpo.algorithm.minibatches import TrainBatch, train_batch
from grpo.algorithm.packing import Microbatch, TrainingSequence, filler, pack
from grpo.algorithm.sharing import split_evenly
from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
else:
    torch = deferred("torch")


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """Answers to the same prompt, the best first.

    Attributes:
        answers: two or more sequences with the same prompt. In the best answer, each token has the weight 1 / length,
            for the term of supervised fine-tuning; in the others it has the weight 0.
        margin: how much higher the implicit reward of the better answer of a pair must be.
    """

    answers: tuple[TrainingSequence, ...]
    margin: float = 0.0

    @classmethod
    def of(cls, prompt: Sequence[int], answers: Sequence[Sequence[int]], margin: float = 0.0) -> AnswerComparison:
        """Make a comparison of token ids: a prompt and its answers, the best first, each with its end token."""
        sequences = [
            TrainingSequence(
                (*prompt, *answer), len(prompt), (0.0,) * len(answer), 0.0, 0.0 if place else 1 / len(answer)
            )
            for place, answer in enumerate(answers)
        ]
        return cls(tuple(sequences), margin)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of answers, as places in `answers`, the better first."""
        return list(itertools.combinations(range(len(self.answers)), 2))

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computes for the comparison. It computes the prompt once for all answers."""
        prompt = self.answers[0].prompt_length
        return prompt + sum(len(answer.token_ids) - prompt - 1 for answer in self.answers)


# The log-probability of each answer of a comparison under the reference, in nats.
ReferenceLogps = tuple[float, ...]


def pack_comparisons(comparisons: Sequence[AnswerComparison], references: Sequence[ReferenceLogps]) -> Microbatch:
    """Pack whole comparisons into a microbatch. Each pair has the weight 1 / (number of pairs of its comparison)."""
    places, weights, margins, first = [], [], [], 0
    for comparison in comparisons:
        pairs = comparison.pairs
        places += [(first + better, first + worse) for better, worse in pairs]
        weights += [1 / len(pairs)] * len(pairs)
        margins += [comparison.margin] * len(pairs)
        first += len(comparison.answers)
    packed = pack([answer for comparison in comparisons for answer in comparison.answers])
    return _with_pairs(packed, places, weights, margins, [logp for each in references for logp in each])


def _with_pairs(
    packed: Microbatch,
    places: Sequence[tuple[int, int]],
    weights: Sequence[float],
    margins: Sequence[float],
    references: Sequence[float],
) -> Microbatch:
    return replace(
        packed,
        pairs_P2=torch.from_numpy(np.asarray(places, np.int64).reshape(-1, 2)),
        pair_weights_P=torch.from_numpy(np.asarray(weights, np.float32)),
        pair_margins_P=torch.from_numpy(np.asarray(margins, np.float32)),
        reference_S=torch.from_numpy(np.asarray(references, np.float32)),
    )


def preference_batch(
    comparisons: Sequence[AnswerComparison],
    references: Sequence[ReferenceLogps],
    *,
    ranks: int,
    microbatch_tokens: int,
) -> TrainBatch:
    """Distribute comparisons evenly over all ranks. A comparison is never divided, since its loss needs all answers.

    Args:
        comparisons: comparisons of an optimizer step.
        references: log-probabilities of their answers under the reference.
        ranks: number of data-parallel ranks.
        microbatch_tokens: largest size of a microbatch, in tokens.

    Raises:
        ValueError: a comparison does not fit a microbatch.
    """
    shares = split_evenly([comparison.computed_tokens for comparison in comparisons], ranks, microbatch_tokens)
    shortest = min((each.answers[0] for each in comparisons), key=lambda answer: answer.prompt_length)
    empty = _with_pairs(pack([filler(shortest)]), [], [], [], [0.0])
    microbatches = [
        [
            pack_comparisons([comparisons[at] for at in chosen], [references[at] for at in chosen]) if chosen else empty
            for chosen in share
        ]
        for share in shares
    ]
    # Each comparison counts once, however many pairs it has.
    sequences = [answer for comparison in comparisons for answer in comparison.answers]
    return train_batch(microbatches, sequences, sequences, denominator=float(len(comparisons)))
