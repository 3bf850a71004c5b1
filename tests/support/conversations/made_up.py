"""Completions of several turns, made up from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo.messages import ChatMessage, Continuation, ConversationEnd, Dialogue, MalformedCall, ToolCall
from grpo.types import Completion, VersionSpan

MESSAGES = (
    ChatMessage("user", "2+3?"),
    ChatMessage("assistant", "call", (ToolCall("add", {"of": [2, 3], "deep": {"x": None}}), MalformedCall("no JSON"))),
    ChatMessage("tool", "5", name="add"),
    ChatMessage("assistant", "It is 5."),
)


def make_dialogue(**fields: Any) -> Dialogue:
    """A dialogue of two turns with a call between them."""
    return Dialogue(**{"messages": MESSAGES, "opening": 1, "ended": ConversationEnd.ANSWER} | fields)


def make_conversation(
    pieces: Sequence[Sequence[int]], logprobs: Sequence[float], dialogue: Dialogue | None = None, text: str = "text"
) -> Completion:
    """A completion of sampled and given pieces in turn, the first and the last of which are sampled.

    Args:
        pieces: tokens of each piece.
        logprobs: of the sampled tokens.
        dialogue: of the completion; by default that of `make_dialogue`.
        text: text of the last turn.
    """
    tokens, values, given = flat(pieces, logprobs)
    spans = (VersionSpan(0, len(tokens), 0),)
    return Completion(tokens, values, text, "stop", spans, given, dialogue or make_dialogue())


def make_continuation(
    prompt_ids: Sequence[int], pieces: Sequence[Sequence[int]], logprobs: Sequence[float]
) -> Continuation:
    """A later part of such a completion."""
    return Continuation(tuple(prompt_ids), *flat(pieces, logprobs))


def flat(
    pieces: Sequence[Sequence[int]], logprobs: Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[tuple[int, int], ...]]:
    """Return tokens, log-probabilities (0 for given tokens) and given ranges of sampled and given pieces."""
    tokens: list[int] = []
    values: list[float] = []
    given: list[tuple[int, int]] = []
    remaining = iter(logprobs)
    for at, piece in enumerate(pieces):
        if at % 2:
            given.append((len(tokens), len(tokens) + len(piece)))
        values += [0.0 if at % 2 else next(remaining) for _ in piece]
        tokens += piece
    assert next(remaining, None) is None
    return tuple(tokens), tuple(values), tuple(given)


def prompt_of(completion: Completion) -> tuple[int, ...]:
    """Return the tokens before a conversation."""
    assert completion.dialogue is not None
    return completion.dialogue.prompt_ids
