"""A rollout as a conversation: segments of tokens that the policy sampled, or that the world gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from grpo.conversation.marked_template import Rendering
from grpo.messages import ChatMessage
from grpo.types import Completion


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that stand together in a conversation.

    Attributes:
        token_ids: the tokens, at least one.
        sampled: whether the policy sampled the tokens. Only sampled tokens carry loss.
        logprobs: natural logarithm of each sampled token's probability under the sampling distribution; empty if the
            tokens were given.
        versions: version of the policy that sampled each token; empty if the tokens were given.
        rewrites: whether the segment replaces all tokens before it, because the chat template rewrote the history.
            Such a segment is given. It may repeat sampled tokens, which carry their loss where they were sampled.
    """

    token_ids: tuple[int, ...]
    sampled: bool = False
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    rewrites: bool = False

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("a segment has at least one token")
        expected = len(self.token_ids) if self.sampled else 0
        if (len(self.logprobs), len(self.versions)) != (expected, expected):
            kind = "sampled" if self.sampled else "given"
            raise ValueError(
                f"a segment of {len(self.token_ids)} {kind} tokens needs {expected} log-probabilities and versions; "
                f"got {len(self.logprobs)} and {len(self.versions)}"
            )
        if self.sampled and self.rewrites:
            raise ValueError("a sampled segment cannot rewrite the history; only a given segment can")
        wrong = next((value for value in self.logprobs if not math.isfinite(value)), None)
        if wrong is not None:
            raise ValueError(f"a sampled token has the log-probability {wrong}; expected a finite number")

    @classmethod
    def from_completion(cls, completion: Completion) -> Segment:
        """Return the tokens of a completion as a sampled segment."""
        versions = chain.from_iterable([span.policy_version] * (span.stop - span.start) for span in completion.spans)
        return cls(completion.token_ids, True, completion.logprobs, tuple(versions))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation: its messages as text for verifiers, and its segments of tokens for the learner.

    The first segment is the first prompt: the chat template's tokens of the opening messages. Then sampled segments
    (turns of the policy, one message each) and given segments (what the world said, one message or more) alternate.

    Attributes:
        messages: all messages, in their order.
        opening: number of messages in the first prompt.
        segments: the tokens.
        tools: schemas of the tools in the first prompt.
        rendering: what the chat template wrote for the last given segment, from which the next answer of the world
            goes on; None if the renderer must render these messages again.
    """

    messages: tuple[ChatMessage, ...]
    opening: int
    segments: tuple[Segment, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    rendering: Rendering | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.opening <= len(self.messages) or not self.segments:
            raise ValueError("a conversation begins with at least one message and its tokens")
        if self.segments[0].rewrites:
            raise ValueError("the first segment of a conversation has no history to rewrite")
        sampled = [False]
        for message in self.messages[self.opening :]:
            if message.role == "assistant":
                if sampled[-1]:
                    raise ValueError("the assistant speaks twice in a row; the world answers each of its turns")
                sampled.append(True)
            elif sampled[-1]:
                sampled.append(False)
            elif len(sampled) == 1:
                raise ValueError(f"a message of {message.role!r} follows the opening; the assistant answers it first")
        if sampled != [segment.sampled for segment in self.segments]:
            raise ValueError(
                f"the {len(self.segments)} segments of a conversation do not follow its messages: each turn of the "
                "assistant is a sampled segment, and what the world says before the next turn is a given segment"
            )

    @classmethod
    def begin(
        cls,
        messages: Sequence[ChatMessage],
        prompt: Segment,
        tools: Sequence[Mapping[str, Any]] = (),
        rendering: Rendering | None = None,
    ) -> Conversation:
        """Return the conversation that has only its first prompt."""
        return cls(tuple(messages), len(messages), (prompt,), tuple(tools), rendering)

    def with_turn(self, message: ChatMessage, segment: Segment) -> Conversation:
        """Return the conversation with the policy's next turn."""
        said, segments = (*self.messages, message), (*self.segments, segment)
        return Conversation(said, self.opening, segments, self.tools, self.rendering)

    def with_answer(
        self, messages: Sequence[ChatMessage], segment: Segment, rendering: Rendering | None = None
    ) -> Conversation:
        """Return the conversation with what the world says to the policy's last turn."""
        said, segments = (*self.messages, *messages), (*self.segments, segment)
        return Conversation(said, self.opening, segments, self.tools, rendering)

    @property
    def context(self) -> tuple[int, ...]:
        """Tokens that the policy reads now: all since the history was last rewritten."""
        start = max((at for at, segment in enumerate(self.segments) if segment.rewrites), default=0)
        return tuple(chain.from_iterable(segment.token_ids for segment in self.segments[start:]))

    @property
    def turns(self) -> tuple[Segment, ...]:
        """The policy's turns, in their order."""
        return tuple(segment for segment in self.segments if segment.sampled)
