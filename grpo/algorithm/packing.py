"""Packing: sequences of very different lengths into microbatches without padding between them.

A microbatch is one row of concatenated sequences; completions of one prompt share its tokens. Nothing crosses a
sequence's border: positions go on from its own prompt, and attention is told where it lies (`grpo.policy.attention`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

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
        weight: of each completion token in the loss (`grpo.algorithm.aggregation`), 0 for a sequence that carries none.
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
class Place:
    """Where a sequence lies in a packed row: its prompt, which others may share, and what follows it.

    Attributes:
        prompt: first position of the prompt.
        prompt_length: positions of the prompt.
        rest: first position of what follows the prompt, its last token left out.
        rest_length: positions of that, possibly 0.
    """

    prompt: int
    prompt_length: int
    rest: int
    rest_length: int

    @property
    def length(self) -> int:
        """Positions of the whole sequence."""
        return self.prompt_length + self.rest_length


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Packed tensors for one forward and backward pass.

    The model computes N tokens: each prompt once, however many completions follow it, and of each completion all but
    the last token, which predicts nothing. The loss is over T predicted tokens: the completions', one after another.

    Attributes:
        input_ids_N: int64, what the model reads.
        position_ids_N: int64, from 0 in each sequence.
        places: where each sequence lies among the N, in the order in which their completions lie among the T.
        source_T: int64, the position among the N whose output predicts the token.
        targets_T: int64, the predicted token.
        lengths_S: int64, predicted tokens of each sequence.
        weights_T: float32, the token's weight in the loss; 0 in a sequence that is only there to fill a rank.
        old_logprobs_T: float32, of the token under the policy that sampled it.
        advantages_T: float32.
        proximal_logprobs_T: float32, of the next token under the learner at the start of the step; None where the ratio
            is to the sampler.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    places: tuple[Place, ...]
    source_T: Tensor
    targets_T: Tensor
    lengths_S: Tensor
    weights_T: Tensor
    old_logprobs_T: Tensor
    advantages_T: Tensor
    proximal_logprobs_T: Tensor | None = None

    def to(self, device: torch.device) -> Microbatch:
        """The same microbatch with its token tensors on `device`; lengths stay on the CPU, where they are read."""
        return Microbatch(
            self.input_ids_N.to(device),
            self.position_ids_N.to(device),
            self.places,
            self.source_T.to(device),
            self.targets_T.to(device),
            self.lengths_S,
            self.weights_T.to(device),
            self.old_logprobs_T.to(device),
            self.advantages_T.to(device),
            None if self.proximal_logprobs_T is None else self.proximal_logprobs_T.to(device),
        )

    def __reduce__(self) -> tuple[Callable[..., Microbatch], tuple[object, ...]]:
        """On its way to a rank it is arrays, which Ray carries beside the pickle; tensors would be copied into it."""
        places_S4 = np.array([(one.prompt, one.prompt_length, one.rest, one.rest_length) for one in self.places])
        named = ((one.name, getattr(self, one.name)) for one in fields(self))
        return _microbatch, (places_S4, {name: value.numpy() for name, value in named if isinstance(value, Tensor)})


def _microbatch(places_S4: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Microbatch:
    # Ray's arrays lie in its store, where nobody may write.
    tensors = {name: torch.tensor(one) for name, one in arrays.items()}
    return Microbatch(places=tuple(Place(*row) for row in places_S4.tolist()), **tensors)


def pack(sequences: Sequence[TrainingSequence]) -> Microbatch:
    """Lay sequences into one row without padding, each distinct prompt once (prefix sharing, arXiv:2506.05433)."""
    if not sequences:
        raise ValueError("a microbatch needs at least one sequence")
    pieces: list[tuple[int, ...]] = []
    positions: list[np.ndarray] = []
    prompts: dict[tuple[int, ...], int] = {}
    places: list[Place] = []
    computed = 0
    for sequence in sequences:
        length = sequence.prompt_length
        prompt, rest = sequence.token_ids[:length], sequence.token_ids[length:-1]
        if prompt not in prompts:
            prompts[prompt] = computed
            pieces.append(prompt)
            positions.append(np.arange(length))
            computed += length
        places.append(Place(prompts[prompt], length, computed, len(rest)))
        pieces.append(rest)
        positions.append(np.arange(length, length + len(rest)))
        computed += len(rest)
    lengths_S = np.array([len(sequence.old_logprobs) for sequence in sequences])
    sources = [
        (place.prompt + place.prompt_length - 1, *range(place.rest, place.rest + place.rest_length)) for place in places
    ]
    integers = (
        [token for piece in pieces for token in piece],
        np.concatenate(positions),
        [position for source in sources for position in source],
        [token for sequence in sequences for token in sequence.token_ids[sequence.prompt_length :]],
    )
    floats = (
        np.repeat([sequence.weight for sequence in sequences], lengths_S),
        [logprob for sequence in sequences for logprob in sequence.old_logprobs],
        np.repeat([sequence.advantage for sequence in sequences], lengths_S),
    )
    proximal_T = None
    if any(sequence.proximal_logprobs is not None for sequence in sequences):
        proximal = [
            logprob for sequence in sequences for logprob in sequence.proximal_logprobs or sequence.old_logprobs
        ]
        proximal_T = torch.tensor(proximal, dtype=torch.float32)
    input_ids_N, position_ids_N, source_T, targets_T = (torch.from_numpy(np.asarray(one, np.int64)) for one in integers)
    weights_T, old_logprobs_T, advantages_T = (torch.from_numpy(np.asarray(one, np.float32)) for one in floats)
    return Microbatch(
        input_ids_N,
        position_ids_N,
        tuple(places),
        source_T,
        targets_T,
        torch.from_numpy(lengths_S),
        weights_T,
        old_logprobs_T,
        advantages_T,
        proximal_T,
    )


def sharing_units(sequences: Sequence[TrainingSequence], max_tokens: int) -> list[tuple[list[int], int]]:
    """Sequences that are best computed together because they share a prompt.

    Args:
        sequences: what to train on.
        max_tokens: tokens at which a unit is closed and another begun, so that units can be dealt out evenly. A single
            sequence may be longer.

    Returns:
        (indices of the unit's sequences, tokens that the model computes for them) for each unit.
    """
    units: list[tuple[list[int], int]] = []
    open_units: dict[tuple[int, ...], int] = {}
    for index, sequence in enumerate(sequences):
        prompt = sequence.token_ids[: sequence.prompt_length]
        own = len(sequence.token_ids) - sequence.prompt_length - 1
        unit = open_units.get(prompt)
        if unit is not None and units[unit][1] + own <= max_tokens:
            units[unit] = ([*units[unit][0], index], units[unit][1] + own)
        else:
            open_units[prompt] = len(units)
            units.append(([index], len(prompt) + own))
    return units


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


def deal_out(sequences: Sequence[TrainingSequence], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Share sequences out over ranks as `split_evenly` does, those of one prompt together as far as that stays even.

    Returns:
        [rank][microbatch] -> indices into `sequences`.
    """
    total = sum(len(one.token_ids) for one in sequences)
    # Quarters of what a rank or a microbatch takes are small enough to deal out evenly.
    units = sharing_units(sequences, min(max_tokens, total // ranks) // 4)
    shares = split_evenly([tokens for _, tokens in units], ranks, max_tokens)
    return [[[index for unit in chosen for index in units[unit][0]] for chosen in share] for share in shares]


def filler(like: TrainingSequence) -> TrainingSequence:
    """A sequence that carries no loss, for a rank that has none left while others still work."""
    token_ids = like.token_ids[: like.prompt_length + 1]
    proximal = None if like.proximal_logprobs is None else (0.0,)
    return TrainingSequence(token_ids, like.prompt_length, (0.0,), 0.0, 0.0, proximal)


# A batch of sequences may hold at most this share of padding; more is split off into the next batch.
MAX_PADDING_SHARE = 0.05


def length_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut sequences, shortest first, into runs [start, stop) that pad to at most `MAX_PADDING_SHARE`.

    Raises:
        ValueError: the lengths are not in ascending order.
    """
    if any(shorter > longer for shorter, longer in itertools.pairwise(lengths)):
        raise ValueError("lengths must ascend")
    batches: list[tuple[int, int]] = []
    start, total = 0, 0
    for stop, length in enumerate(lengths):
        padded = length * (stop + 1 - start)
        if stop > start and padded - (total + length) > MAX_PADDING_SHARE * padded:
            batches.append((start, stop))
            start, total = stop, 0
        total += length
    batches.append((start, len(lengths)))
    return batches
