"""From a conversation that has ended to the completion that the loop trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from grpo.conversation.samples import ConversationSample, training_samples
from grpo.conversation.segments import Conversation
from grpo.messages import Continuation, Dialogue
from grpo.types import Completion, FinishReason, VersionSpan


def completion_of(conversation: Conversation, dialogue: Dialogue, finish_reason: FinishReason) -> Completion:
    """Return a conversation as a completion.

    Args:
        conversation: conversation with at least one turn of the policy.
        dialogue: what the completion has beside its tokens; its fields `prompt_ids` and `further` are filled in here.
        finish_reason: `length` if a limit of tokens ended the last turn or the conversation.

    Raises:
        ValueError: the policy has said nothing.
    """
    samples = training_samples(conversation)
    if not samples:
        raise ValueError("a conversation without a turn of the policy has no completion")
    first, *later = samples
    start = len(conversation.segments[0].token_ids)
    spoken = [message for message in conversation.messages[conversation.opening :] if message.role == "assistant"]
    return Completion(
        token_ids=first.token_ids[start:],
        logprobs=first.logprobs[start:],
        text=spoken[-1].content,
        finish_reason=finish_reason,
        spans=tuple(_spans(first.versions[start:])),
        given=_given(first.sampled[start:]),
        dialogue=replace(
            dialogue,
            prompt_ids=conversation.segments[0].token_ids,
            further=tuple(_continuation(sample) for sample in later),
        ),
    )


def _continuation(sample: ConversationSample) -> Continuation:
    start = sample.sampled.index(True)
    return Continuation(
        prompt_ids=sample.token_ids[:start],
        token_ids=sample.token_ids[start:],
        logprobs=sample.logprobs[start:],
        given=_given(sample.sampled[start:]),
    )


def _given(sampled: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    ranges, start = [], 0
    for value, places in groupby(sampled):
        stop = start + sum(1 for _ in places)
        if not value:
            ranges.append((start, stop))
        start = stop
    return tuple(ranges)


def _spans(versions: Iterable[int]) -> Iterator[VersionSpan]:
    """Yield the ranges of a version. Given tokens, whose version is -1, have that of the turn before them."""
    known, last = [], -1
    for version in versions:
        last = last if version < 0 else version
        known.append(last)
    start = 0
    for version, places in groupby(known):
        stop = start + sum(1 for _ in places)
        yield VersionSpan(start, stop, version)
        start = stop
