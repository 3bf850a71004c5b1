"""Pack sequences of very different lengths into microbatches, without padding between them.

A microbatch is a single row of concatenated sequences. Completions of the same prompt share the prompt's tokens.
Sequences do not affect each other, for two reasons: the positions of a completion continue from its prompt, and
attention gets the place of each sequence (`grpo.policy.attention`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A prompt and one of its completions, as one sequence to train on.

    Attributes:
        token_ids: tokens of the prompt, then of the completion.
        prompt_length: length of the prompt, in tokens.
        old_logprobs: log-probabilities of the completion's tokens under the policy that sampled them (any value for
            supervised rows).
        advantage: advantage of the completion.
        weight: weight of each completion token in the loss (`grpo.algorithm.aggregation`); 0 if the sequence carries no
            loss.
        proximal_logprobs: log-probabilities of the completion's tokens under the learner at the start of the step; None
            if the ratio is relative to the sampler.
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
                f"a sequence needs a prompt and a completion; got {len(self.token_ids)} tokens, of which "
                f"{self.prompt_length} are the prompt"
            )
        for logprobs in (self.old_logprobs, self.proximal_logprobs):
            if logprobs is not None and len(logprobs) != len(self.token_ids) - self.prompt_length:
                raise ValueError(
                    f"{len(self.token_ids) - self.prompt_length} completion tokens came with "
                    f"{len(logprobs)} log-probabilities"
                )

    @property
    def trained_tokens(self) -> int:
        """Number of completion tokens that carry loss."""
        return len(self.old_logprobs) if self.weight else 0


@dataclass(frozen=True, slots=True)
class Place:
    """The positions of a sequence in a packed row. Other sequences may share the positions of the prompt.

    Attributes:
        prompt: first position of the prompt.
        prompt_length: number of positions of the prompt.
        rest: first position of the completion. The last token of the completion has no position.
        rest_length: number of positions of the completion, possibly 0.
    """

    prompt: int
    prompt_length: int
    rest: int
    rest_length: int

    @property
    def length(self) -> int:
        """Number of positions of the whole sequence."""
        return self.prompt_length + self.rest_length


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Packed tensors for one forward and backward pass.

    The model computes N tokens. It computes each prompt once, even if several completions share the prompt. It computes
    each completion without the last token, which predicts no token. The loss covers T predicted tokens: all tokens of
    all completions, in order.

    Attributes:
        input_ids_N: int64, tokens that the model reads.
        position_ids_N: int64, position of each token in its sequence, from 0.
        places: place of each sequence among the N positions, in the order of the completions among the T tokens.
        source_T: int64, index of the position (among the N) that predicts the token.
        targets_T: int64, the predicted token.
        lengths_S: int64, number of predicted tokens of each sequence.
        weights_T: float32, weight of the token in the loss; 0 in a sequence of filler.
        old_logprobs_T: float32, log-probability of the token under the policy that sampled it.
        advantages_T: float32, advantage of the token's completion.
        proximal_logprobs_T: float32, log-probability of the token under the learner at the start of the step; None if
            the ratio is relative to the sampler.
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
        """Return a copy with all tensors on `device`. Only the lengths stay on the CPU, where they are read."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "lengths_S")
        moved: dict[str, Any] = {name: value.to(device) for name, value in named if isinstance(value, Tensor)}
        return replace(self, **moved)

    def __reduce__(self) -> tuple[Callable[..., Microbatch], tuple[object, ...]]:
        """Pickle the tensors as NumPy arrays. Ray would copy tensors into the pickle, but sends arrays outside it."""
        places_S4 = np.array(
            [(place.prompt, place.prompt_length, place.rest, place.rest_length) for place in self.places]
        )
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return _microbatch, (places_S4, {name: value.numpy() for name, value in named if isinstance(value, Tensor)})


def _microbatch(places_S4: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Microbatch:
    # Arrays from Ray lie in its store and are read-only, so copy them.
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    return Microbatch(places=tuple(Place(*row) for row in places_S4.tolist()), **tensors)


def pack(sequences: Sequence[TrainingSequence]) -> Microbatch:
    """Pack sequences into one row without padding. Equal prompts appear once (prefix sharing, arXiv:2506.05433)."""
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
    has_proximal = any(sequence.proximal_logprobs is not None for sequence in sequences)
    proximal = [logprob for sequence in sequences for logprob in sequence.proximal_logprobs or sequence.old_logprobs]
    return Microbatch(
        input_ids_N=_integers([token for piece in pieces for token in piece]),
        position_ids_N=_integers(np.concatenate(positions)),
        places=tuple(places),
        source_T=_integers([position for source in sources for position in source]),
        targets_T=_integers([token for item in sequences for token in item.token_ids[item.prompt_length :]]),
        lengths_S=_integers(lengths_S),
        weights_T=_floats(np.repeat([sequence.weight for sequence in sequences], lengths_S)),
        old_logprobs_T=_floats([logprob for sequence in sequences for logprob in sequence.old_logprobs]),
        advantages_T=_floats(np.repeat([sequence.advantage for sequence in sequences], lengths_S)),
        proximal_logprobs_T=_floats(proximal) if has_proximal else None,
    )


def _integers(values: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.int64))


def _floats(values: Sequence[float] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def sharing_units(sequences: Sequence[TrainingSequence], max_tokens: int) -> list[tuple[list[int], int]]:
    """Form units of sequences that share a prompt. The model computes the shared prompt once per unit.

    Args:
        sequences: sequences to train on.
        max_tokens: largest size of a unit, in tokens. The limit makes it possible to distribute the units evenly. A
            unit with a single sequence may be larger.

    Returns:
        For each unit: (indices of its sequences, number of tokens that the model computes for the unit).
    """
    units: list[tuple[list[int], int]] = []
    open_units: dict[tuple[int, ...], int] = {}
    for index, sequence in enumerate(sequences):
        prompt = sequence.token_ids[: sequence.prompt_length]
        completion_tokens = len(sequence.token_ids) - sequence.prompt_length - 1
        unit = open_units.get(prompt)
        if unit is not None and units[unit][1] + completion_tokens <= max_tokens:
            units[unit] = ([*units[unit][0], index], units[unit][1] + completion_tokens)
        else:
            open_units[prompt] = len(units)
            units.append(([index], len(prompt) + completion_tokens))
    return units


def split_evenly(lengths: Sequence[int], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Distribute sequences over ranks. Each rank gets the same number of microbatches of at most `max_tokens` tokens.

    The method is greedy (the LPT rule, Graham 1969). It takes the sequences in the order of their lengths, the longest
    first, and puts each sequence into the emptiest microbatch. If a microbatch becomes too large, the method starts
    again with more microbatches. Therefore the sizes of two microbatches differ at most by the length of the longest
    sequence. The microbatches are then distributed over the ranks in the order of their sizes. Therefore the totals of
    two ranks also differ at most by the length of the longest sequence. The k-th microbatches of all ranks, which run
    at the same time, have similar sizes.

    Args:
        lengths: length of each sequence, in tokens.
        ranks: number of data-parallel ranks.
        max_tokens: largest size of a microbatch, in tokens.

    Returns:
        For each rank and microbatch, the indices into `lengths`. If there are fewer sequences than microbatches, some
        microbatches are empty.

    Raises:
        ValueError: a sequence is longer than `max_tokens`.
    """
    if not lengths:
        raise ValueError("there is nothing to share out")
    longest = max(lengths)
    if longest > max_tokens:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit learner.microbatch_tokens={max_tokens}; "
            "raise learner.microbatch_tokens, or lower the length limits"
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
    """Distribute sequences over ranks as `split_evenly` does. Sequences of the same prompt stay together if possible.

    Returns:
        For each rank and microbatch, the indices into `sequences`.
    """
    total = sum(len(sequence.token_ids) for sequence in sequences)
    # A unit has at most a quarter of a rank's or a microbatch's tokens, so the units can be distributed evenly.
    units = sharing_units(sequences, min(max_tokens, total // ranks) // 4)
    shares = split_evenly([tokens for _, tokens in units], ranks, max_tokens)
    return [[[index for unit in chosen for index in units[unit][0]] for chosen in share] for share in shares]


def filler(like: TrainingSequence) -> TrainingSequence:
    """Make a sequence that carries no loss, for a rank that has no more sequences while other ranks still work."""
    token_ids = like.token_ids[: like.prompt_length + 1]
    proximal = None if like.proximal_logprobs is None else (0.0,)
    return TrainingSequence(token_ids, like.prompt_length, (0.0,), 0.0, 0.0, proximal)


# Largest share of padding in a batch. A sequence that would raise the share above this value starts the next batch.
MAX_PADDING_SHARE = 0.05


def length_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Divide sequences, sorted from the shortest to the longest, into batches [start, stop).

    If the sequences of a batch are padded to the same length, the share of padding is at most `MAX_PADDING_SHARE`.

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
