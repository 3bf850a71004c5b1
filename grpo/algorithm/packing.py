"""Pack sequences of very different lengths into microbatches, without padding between them.

A microbatch is a single row of concatenated sequences. Completions of the same prompt share the prompt's tokens.
Sequences do not affect each other, for two reasons: the positions of a completion continue from its prompt, and
attention gets the place of each sequence (`grpo.policy.attention`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo.algorithm.transfer import on_device
from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")


# A value for each sampled token of a sequence, or a value that all of them have.
PerToken = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A prompt and the tokens after it, as one sequence to train on.

    The tokens after the prompt are a completion or the later part of a conversation. The policy sampled them, apart
    from the ranges `given`: tool results and other turns that the world gave. Only sampled tokens carry loss.

    Attributes:
        token_ids: tokens of the prompt, then the tokens after it. The last token is sampled.
        prompt_length: length of the prompt, in tokens. Sequences with the same prompt share its computation.
        old_logprobs: log-probabilities of the sampled tokens under the policy that sampled them (any value for
            supervised rows).
        advantage: advantage of the sampled tokens.
        weight: weight of the sampled tokens in the loss (`grpo.algorithm.aggregation`); 0 for a token without loss.
        proximal_logprobs: log-probabilities of the sampled tokens under the learner at the start of the step; None if
            the ratio is relative to the sampler.
        given: index ranges [start, stop) into `token_ids`, in ascending order, of tokens after the prompt that the
            world gave.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    old_logprobs: tuple[float, ...]
    advantage: PerToken
    weight: PerToken = 1.0
    proximal_logprobs: tuple[float, ...] | None = None
    given: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length < len(self.token_ids):
            raise ValueError(
                f"a sequence needs a prompt and a completion; got {len(self.token_ids)} tokens, of which "
                f"{self.prompt_length} are the prompt"
            )
        sampled = len(self.token_ids) - self.prompt_length
        if self.given:
            borders = [self.prompt_length, *itertools.chain.from_iterable(self.given), len(self.token_ids) - 1]
            empty = any(start == stop for start, stop in self.given)
            if empty or any(left > right for left, right in itertools.pairwise(borders)):
                raise ValueError(
                    f"the given ranges {self.given} must ascend after the {self.prompt_length} tokens of the prompt "
                    f"and end before the last of {len(self.token_ids)} tokens"
                )
            sampled -= sum(stop - start for start, stop in self.given)
        named = {
            "log-probabilities": self.old_logprobs,
            "proximal log-probabilities": self.proximal_logprobs,
            "advantages": self.advantage,
            "weights": self.weight,
        }
        for name, values in named.items():
            if isinstance(values, tuple) and len(values) != sampled:
                raise ValueError(f"{sampled} sampled tokens came with {len(values)} {name}")

    @property
    def trained_tokens(self) -> int:
        """Number of sampled tokens that carry loss."""
        if isinstance(self.weight, tuple):
            return sum(weight != 0 for weight in self.weight)
        return len(self.old_logprobs) if self.weight else 0

    @property
    def without_advantage(self) -> bool:
        """Whether all advantages are 0."""
        return not any(self.advantage) if isinstance(self.advantage, tuple) else self.advantage == 0.0

    def sampled_indices(self) -> range | list[int]:
        """Return the indices of the sampled tokens in `token_ids`."""
        if not self.given:
            return range(self.prompt_length, len(self.token_ids))
        borders = [self.prompt_length, *itertools.chain.from_iterable(self.given), len(self.token_ids)]
        return [index for start, stop in zip(borders[::2], borders[1::2], strict=True) for index in range(start, stop)]


@dataclass(frozen=True, slots=True)
class Place:
    """The positions of a sequence in a packed row. Other sequences may share the positions of the prompt.

    Attributes:
        prompt: first position of the prompt.
        prompt_length: number of positions of the prompt.
        rest: first position after the prompt. The last token of the sequence has no position.
        rest_length: number of positions after the prompt, possibly 0.
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
    each completion without the last token, which predicts no token. The loss covers T predicted tokens: all sampled
    tokens of all sequences, in order.

    Attributes:
        input_ids_N: int64, tokens that the model reads.
        position_ids_N: int64, position of each token in its sequence, from 0.
        places: place of each sequence among the N positions, in the order of the sequences among the T tokens.
        source_T: int64, index of the position (among the N) that predicts the token.
        targets_T: int64, the predicted token.
        lengths_S: int64, number of predicted tokens of each sequence.
        weights_T: float32, weight of the token in the loss; 0 for a token without loss, as in a sequence of filler.
        old_logprobs_T: float32, log-probability of the token under the policy that sampled it.
        advantages_T: float32, advantage of the token.
        proximal_logprobs_T: float32, log-probability of the token under the learner at the start of the step; None if
            the ratio is relative to the sampler.
        pairs_P2: int64, for each pair of answers the numbers of its better and its worse sequence; None if the
            objective compares no sequences, as are the next three (`grpo.algorithm.comparisons`).
        pair_weights_P: float32, weight of the pair in the loss.
        pair_margins_P: float32, how much higher the implicit reward of the better sequence must be.
        reference_S: float32, log-probability of each sequence under the reference.
        host_source_T: `source_T` on the CPU, after `to` has moved `source_T` to another device.
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
    pairs_P2: Tensor | None = None
    pair_weights_P: Tensor | None = None
    pair_margins_P: Tensor | None = None
    reference_S: Tensor | None = None
    host_source_T: Tensor | None = None

    def to(self, device: torch.device) -> Microbatch:
        """Return a copy with all tensors on `device`, apart from lengths and `host_source_T`, which the host reads."""
        staying = ("lengths_S", "host_source_T")
        named = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name not in staying)
        moved: dict[str, Any] = {
            name: on_device(value, device) for name, value in named if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved, host_source_T=self.source_T if self.host_source_T is None else self.host_source_T)

    def __reduce__(self) -> tuple[Callable[..., Microbatch], tuple[object, ...]]:
        """Pickle the tensors as NumPy arrays. Ray would copy tensors into the pickle, but sends arrays outside it."""
        places_S4 = np.array(
            [(place.prompt, place.prompt_length, place.rest, place.rest_length) for place in self.places]
        )
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        arrays = {name: value.numpy() for name, value in named if isinstance(value, torch.Tensor)}
        return _microbatch, (places_S4, arrays)


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
    sampled = [sequence.sampled_indices() for sequence in sequences]
    has_proximal = any(sequence.proximal_logprobs is not None for sequence in sequences)
    proximal = [logprob for sequence in sequences for logprob in sequence.proximal_logprobs or sequence.old_logprobs]
    return Microbatch(
        input_ids_N=_integers([token for piece in pieces for token in piece]),
        position_ids_N=_integers(np.concatenate(positions)),
        places=tuple(places),
        source_T=_integers(np.concatenate([_sources(*item) for item in zip(places, sampled, strict=True)])),
        targets_T=_integers([item.token_ids[at] for item, kept in zip(sequences, sampled, strict=True) for at in kept]),
        lengths_S=_integers(lengths_S),
        weights_T=_per_token([sequence.weight for sequence in sequences], lengths_S),
        old_logprobs_T=_floats([logprob for sequence in sequences for logprob in sequence.old_logprobs]),
        advantages_T=_per_token([sequence.advantage for sequence in sequences], lengths_S),
        proximal_logprobs_T=_floats(proximal) if has_proximal else None,
    )


def _sources(place: Place, sampled: Sequence[int]) -> np.ndarray:
    """Return the positions that predict the sampled tokens: the positions of the tokens before them."""
    before = np.asarray(sampled) - 1
    in_prompt = before < place.prompt_length
    return np.where(in_prompt, place.prompt + before, place.rest + before - place.prompt_length)


def _per_token(values: Sequence[PerToken], lengths_S: np.ndarray) -> Tensor:
    if not any(isinstance(value, tuple) for value in values):
        return _floats(np.repeat(np.asarray(values), lengths_S))
    return _floats(
        np.concatenate([np.broadcast_to(value, length) for value, length in zip(values, lengths_S, strict=True)])
    )


def _integers(values: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.int64))


def _floats(values: Sequence[float] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


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
