"""Packing: sequences of very different lengths into microbatches without padding between them.

A microbatch is one row of concatenated sequences. Nothing crosses a sequence's border: positions restart at each
one, and attention is told where they lie (`grpo.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One prompt with its completion, ready to train on.

    Attributes:
        token_ids: prompt and completion.
        prompt_length: how many of them are the prompt's.
        old_logprobs: of the completion's tokens under the policy that sampled them (any value for supervised rows).
        advantage: of the completion.
        weight: of each completion token in the loss (`grpo.aggregation`), 0 for a sequence that carries none.
        proximal_logprobs: of the completion's tokens under the learner at the start of the step; None where the ratio
            is to the sampler.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    old_logprobs: tuple[float, ...]
    advantage: float
    weight: float = 1.0
    proximal_logprobs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length < len(self.token_ids):
            raise ValueError(
                f"a sequence needs a prompt and a completion; got {len(self.token_ids)} tokens, "
                f"{self.prompt_length} of them prompt"
            )
        for logprobs in (self.old_logprobs, self.proximal_logprobs):
            if logprobs is not None and len(logprobs) != len(self.token_ids) - self.prompt_length:
                raise ValueError(
                    f"{len(self.token_ids) - self.prompt_length} completion tokens came with "
                    f"{len(logprobs)} log-probabilities"
                )

    @property
    def trained_tokens(self) -> int:
        """Completion tokens that carry loss."""
        return len(self.old_logprobs) if self.weight else 0


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Packed tensors for one forward and backward pass; position t holds what predicts token t + 1.

    Attributes:
        input_ids_T: int64, the sequences one after another.
        position_ids_T: int64, from 0 in each sequence.
        lengths_S: int64, tokens of each sequence.
        targets_T: int64, the next token of the same sequence (0 at a sequence's last position).
        weights_T: float32, the weight of the next token in the loss: more than 0 where it is a completion's.
        old_logprobs_T: float32, of the next token under the policy that sampled it.
        advantages_T: float32.
        proximal_logprobs_T: float32, of the next token under the learner at the start of the step; None where the ratio
            is to the sampler.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    lengths_S: Tensor
    targets_T: Tensor
    weights_T: Tensor
    old_logprobs_T: Tensor
    advantages_T: Tensor
    proximal_logprobs_T: Tensor | None = None

    def to(self, device: torch.device) -> Microbatch:
        """The same microbatch with its token tensors on `device`; lengths stay on the CPU, where they are read."""
        return Microbatch(
            self.input_ids_T.to(device),
            self.position_ids_T.to(device),
            self.lengths_S,
            self.targets_T.to(device),
            self.weights_T.to(device),
            self.old_logprobs_T.to(device),
            self.advantages_T.to(device),
            None if self.proximal_logprobs_T is None else self.proximal_logprobs_T.to(device),
        )


def pack(sequences: Sequence[TrainingSequence]) -> Microbatch:
    """Concatenate sequences into one microbatch, shortest first so that attention can run them in even batches."""
    if not sequences:
        raise ValueError("a microbatch needs at least one sequence")
    ordered = sorted(sequences, key=lambda sequence: len(sequence.token_ids))
    lengths_S = np.array([len(sequence.token_ids) for sequence in ordered], dtype=np.int64)
    total = int(lengths_S.sum())
    input_ids_T = np.concatenate([np.asarray(sequence.token_ids, dtype=np.int64) for sequence in ordered])
    starts_S = np.cumsum(lengths_S) - lengths_S
    position_ids_T = np.arange(total, dtype=np.int64) - np.repeat(starts_S, lengths_S)
    targets_T = np.zeros(total, dtype=np.int64)
    weights_T, old_T, advantages_T = (np.zeros(total, dtype=np.float32) for _ in range(3))
    is_proximal = any(sequence.proximal_logprobs is not None for sequence in ordered)
    proximal_T = np.zeros(total, dtype=np.float32) if is_proximal else None
    for start, sequence in zip(starts_S.tolist(), ordered, strict=True):
        stop = start + len(sequence.token_ids)
        targets_T[start : stop - 1] = input_ids_T[start + 1 : stop]
        completion = slice(start + sequence.prompt_length - 1, stop - 1)
        weights_T[completion] = sequence.weight
        old_T[completion] = sequence.old_logprobs
        advantages_T[completion] = sequence.advantage
        if proximal_T is not None:
            proximal_T[completion] = sequence.proximal_logprobs
    return Microbatch(
        input_ids_T=torch.from_numpy(input_ids_T),
        position_ids_T=torch.from_numpy(position_ids_T),
        lengths_S=torch.from_numpy(lengths_S),
        targets_T=torch.from_numpy(targets_T),
        weights_T=torch.from_numpy(weights_T),
        old_logprobs_T=torch.from_numpy(old_T),
        advantages_T=torch.from_numpy(advantages_T),
        proximal_logprobs_T=None if proximal_T is None else torch.from_numpy(proximal_T),
    )


def split_evenly(lengths: Sequence[int], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Share sequences out over ranks, the same number of microbatches each, none above `max_tokens`.

    Greedy, longest first, each into the emptiest of the fewest microbatches that can hold all (the LPT rule, Graham
    1969), so that no two microbatches differ by more than the longest sequence. Dealt out in the order of their sizes,
    no two ranks differ by more than that either, and the ranks' k-th microbatches, which run together, are alike.

    Args:
        lengths: tokens of each sequence.
        ranks: data-parallel ranks.
        max_tokens: tokens a microbatch may hold.

    Returns:
        [rank][microbatch] -> indices into `lengths`, possibly none where there are fewer sequences than places.

    Raises:
        ValueError: a sequence is longer than `max_tokens`.
    """
    if not lengths:
        raise ValueError("there is nothing to share out")
    longest = max(lengths)
    if longest > max_tokens:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit learner.microbatch_tokens={max_tokens}; "
            "raise that or lower the length limits"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    per_rank = -(-sum(lengths) // (max_tokens * ranks))
    while True:
        bins: list[list[int]] = [[] for _ in range(per_rank * ranks)]
        loads = [0] * len(bins)
        for index in order:
            emptiest = min(range(len(bins)), key=loads.__getitem__)
            bins[emptiest].append(index)
            loads[emptiest] += lengths[index]
        if max(loads) <= max_tokens:
            by_size = [bins[place] for place in sorted(range(len(bins)), key=loads.__getitem__, reverse=True)]
            return [by_size[rank::ranks] for rank in range(ranks)]
        per_rank += 1


def filler(like: TrainingSequence) -> TrainingSequence:
    """A sequence that carries no loss, for a rank that has none left while others still work."""
    token_ids = like.token_ids[: like.prompt_length + 1]
    proximal = None if like.proximal_logprobs is None else (0.0,)
    return TrainingSequence(token_ids, like.prompt_length, (0.0,), 0.0, 0.0, proximal)
