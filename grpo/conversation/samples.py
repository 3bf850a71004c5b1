"""From a conversation to the sequences that a learner trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, takewhile

from grpo.conversation.segments import Conversation, Segment


@dataclass(frozen=True, slots=True)
class ConversationSample:
    """A sequence of T tokens to train on.

    Attributes:
        token_ids: the T tokens.
        sampled: for each token, whether it carries loss. A sampled token of a conversation carries loss in exactly one
            of its samples.
        logprobs: for each token, its log-probability when it was sampled; 0 where `sampled` is false.
        versions: for each token, the version of the policy that sampled it; -1 where `sampled` is false.
        shared_prefix: number of first tokens that equal the first tokens of the previous sample, so that a forward pass
            over both may compute them once. 0 for the first sample.
    """

    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    shared_prefix: int

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.sampled), len(self.logprobs), len(self.versions)}
        if len(lengths) > 1:
            raise ValueError(f"a sample of {len(self.token_ids)} tokens has values for other numbers: {lengths}")
        if not any(self.sampled) or self.sampled[0]:
            raise ValueError("a sample needs sampled tokens, and a given token before them")


def training_samples(conversation: Conversation) -> tuple[ConversationSample, ...]:
    """Return the sequences to train on: one, and another for each time that the chat template rewrote the history.

    Where the history was rewritten, the policy no longer saw the tokens that it had sampled. So the next turns belong
    to another sequence, whose first tokens are the rewritten history. What the world said after the last turn of a
    sequence is left out, because no loss depends on it. A conversation without a sampled turn has no samples.
    """
    stretches: list[list[Segment]] = []
    for segment in conversation.segments:
        if segment.rewrites or not stretches:
            stretches.append([])
        stretches[-1].append(segment)
    samples: list[ConversationSample] = []
    for stretch in stretches:
        segments = stretch if stretch[-1].sampled else stretch[:-1]
        if segments:
            samples.append(_sample(segments, samples[-1].token_ids if samples else ()))
    return tuple(samples)


def _sample(segments: Sequence[Segment], previous: Sequence[int]) -> ConversationSample:
    token_ids = tuple(chain.from_iterable(segment.token_ids for segment in segments))
    pairs = zip(token_ids, previous, strict=False)
    return ConversationSample(
        token_ids=token_ids,
        sampled=tuple(chain.from_iterable([segment.sampled] * len(segment.token_ids) for segment in segments)),
        logprobs=tuple(chain.from_iterable(segment.logprobs or [0.0] * len(segment.token_ids) for segment in segments)),
        versions=tuple(chain.from_iterable(segment.versions or [-1] * len(segment.token_ids) for segment in segments)),
        shared_prefix=sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)),
    )
