"""From the calls of an agent to sequences of tokens: each sampled token stands in exactly one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

from grpo.conversation.segments import Conversation, Segment
from grpo.messages import Continuation, Dialogue, MalformedCall
from grpo.types import Completion, VersionSpan


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call with its answer.

    Attributes:
        number: number of the call in its conversation, from 0.
        parent: number of the call that this call continues; None if it begins a sample of its own.
        prompt_ids: tokens that the policy read.
        conversation: the conversation with the answer at its end.
        cut: whether a limit of tokens ended the answer.
    """

    number: int
    parent: int | None
    prompt_ids: tuple[int, ...]
    conversation: Conversation
    cut: bool


@dataclass(slots=True)
class _Chain:
    """Calls that continue each other, as a sequence of segments after a prompt."""

    prompt_ids: tuple[int, ...]
    segments: list[Segment]

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        ranges = []
        start = 0
        for segment in self.segments:
            stop = start + len(segment.token_ids)
            if not segment.sampled:
                ranges.append((start, stop))
            start = stop
        return tuple(ranges)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(segment.token_ids for segment in self.segments))

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(
            chain.from_iterable(segment.logprobs or (0.0,) * len(segment.token_ids) for segment in self.segments)
        )

    @property
    def spans(self) -> tuple[VersionSpan, ...]:
        """Ranges of equal versions. Given tokens have the version of the token before them."""
        versions: list[int] = []
        for segment in self.segments:
            versions += segment.versions or [versions[-1]] * len(segment.token_ids)
        spans = []
        start = 0
        for version, same in groupby(versions):
            stop = start + len(list(same))
            spans.append(VersionSpan(start, stop, version))
            start = stop
        return tuple(spans)


def played(calls: Sequence[AnsweredCall], dialogue: Dialogue, answer: str | None) -> Completion:
    """Return a conversation: the sequence that begins with the first call, and the others in `further`.

    A call stays in the sequence of the call that it continues, unless the chat template rewrote the history there, or
    an earlier call already continues it. Otherwise it begins a sequence whose prompt is all that the policy read.

    Args:
        calls: answered calls, at least one.
        dialogue: what the completion has beside its tokens; `messages`, `opening`, `prompt_ids`, `further` and `calls`
            are filled in here.
        answer: what verifiers judge; None for the last answer of the policy.
    """
    calls = sorted(calls, key=lambda call: call.number)
    main, *others = _chains(calls)
    last = _last_of_main_line(calls)
    turns = [call.conversation.messages[-1] for call in calls]
    return Completion(
        token_ids=main.tokens,
        logprobs=main.logprobs,
        text=turns[-1].content if answer is None else answer,
        finish_reason="length" if last.cut else "stop",
        spans=main.spans,
        given=main.given,
        dialogue=replace(
            dialogue,
            messages=last.conversation.messages,
            opening=last.conversation.opening,
            prompt_ids=main.prompt_ids,
            further=tuple(
                Continuation(other.prompt_ids, other.tokens, other.logprobs, other.given) for other in others
            ),
            calls=sum(not isinstance(call, MalformedCall) for turn in turns for call in turn.calls),
        ),
    )


def _chains(calls: Sequence[AnsweredCall]) -> list[_Chain]:
    chains: list[_Chain] = []
    # Number of a call -> the chain whose last call it is.
    open_ends: dict[int, _Chain] = {}
    for call in calls:
        turn = call.conversation.segments[-1]
        before = call.conversation.segments[-2]
        grown = None if call.parent is None or before.rewrites else open_ends.pop(call.parent, None)
        if grown is None:
            grown = _Chain(call.prompt_ids, [turn])
            chains.append(grown)
        else:
            grown.segments += [before, turn]
        open_ends[call.number] = grown
    return chains


def _last_of_main_line(calls: Sequence[AnsweredCall]) -> AnsweredCall:
    """Return the last call of the line that begins with the first call and takes the first continuation each time."""
    last = calls[0]
    for call in calls[1:]:
        if call.parent == last.number:
            last = call
    return last
