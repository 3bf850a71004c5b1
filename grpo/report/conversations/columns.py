"""The columns of stored rollouts that describe conversations. All are null for a completion of a single turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from grpo.messages import ChatMessage, MalformedCall
from grpo.types import Completion

_RANGE = pa.struct([("start", pa.int32()), ("stop", pa.int32())])
_MESSAGE = pa.struct([("role", pa.string()), ("name", pa.string()), ("content", pa.string()), ("calls", pa.string())])
_FURTHER = pa.struct(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("given", pa.list_(_RANGE)),
    ]
)
COLUMNS = [
    ("given", pa.list_(_RANGE)),
    ("messages", pa.list_(_MESSAGE)),
    ("opening_messages", pa.int32()),
    ("ended", pa.string()),
    ("ended_reason", pa.string()),
    ("calls", pa.int32()),
    ("call_failures", pa.list_(pa.struct([("kind", pa.string()), ("count", pa.int32())]))),
    ("waited_s", pa.float64()),
    ("lasted_s", pa.float64()),
    ("turn_rewards", pa.list_(pa.float64())),
    ("further", pa.list_(_FURTHER)),
]
# Columns with tokens, which readers of the text do not need.
TOKEN_COLUMNS = ("given", "further")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A stored message of a conversation.

    Attributes:
        role: who speaks.
        name: name of the tool; empty if there is none.
        content: text.
        calls: JSON list of the calls in a turn of the policy: `{"name", "arguments"}`, or `{"malformed"}` with the
            reason for a call that cannot be read.
    """

    role: str
    name: str
    content: str
    calls: str


@dataclass(frozen=True, slots=True)
class StoredDialogue:
    """A stored conversation, without its tokens.

    Attributes:
        messages: all messages.
        opening: number of messages in the first prompt.
        ended: what ended the conversation.
        reason: what failed; empty unless `ended` is `failed`.
        calls: number of tool calls.
        failures: kind of failure of a call -> number.
        waited_s: time that the conversation waited for tools and environment, in seconds.
        lasted_s: time from the first request to the end, in seconds.
        turn_rewards: reward of each turn, if the environment rewards turns.
    """

    messages: tuple[StoredMessage, ...]
    opening: int
    ended: str
    reason: str
    calls: int
    failures: Mapping[str, int]
    waited_s: float
    lasted_s: float
    turn_rewards: tuple[float, ...]


def dialogue_columns(completion: Completion) -> dict[str, Any]:
    """Return the columns of a completion; none for a single turn, whose columns are null."""
    dialogue = completion.dialogue
    columns: dict[str, Any] = {"given": _ranges(completion.given)} if completion.given else {}
    if dialogue is None:
        return columns
    return {
        "given": _ranges(completion.given),
        "messages": [_message(message) for message in dialogue.messages],
        "opening_messages": dialogue.opening,
        "ended": dialogue.ended.value,
        "ended_reason": storable(dialogue.reason),
        "calls": dialogue.calls,
        "call_failures": [{"kind": kind, "count": count} for kind, count in dialogue.failures.items()],
        "waited_s": dialogue.waited_s,
        "lasted_s": dialogue.lasted_s,
        "turn_rewards": [float(value) for value in dialogue.reward.turns],
        "further": [
            {
                "prompt_ids": list(part.prompt_ids),
                "token_ids": list(part.token_ids),
                "logprobs": list(part.logprobs),
                "given": _ranges(part.given),
            }
            for part in dialogue.further
        ],
    }


def stored_dialogue(row: Mapping[str, Any]) -> StoredDialogue | None:
    """Return the conversation of a stored row; None for a single turn, and for files without these columns."""
    if row.get("messages") is None:
        return None
    return StoredDialogue(
        messages=tuple(StoredMessage(**message) for message in row["messages"]),
        opening=row["opening_messages"],
        ended=row["ended"],
        reason=row["ended_reason"],
        calls=row["calls"],
        failures={failure["kind"]: failure["count"] for failure in row["call_failures"]},
        waited_s=row["waited_s"],
        lasted_s=row["lasted_s"],
        turn_rewards=tuple(row["turn_rewards"]),
    )


def storable(text: str) -> str:
    """Return a text that Arrow can store: lone surrogates, which UTF-8 does not allow, become readable escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _ranges(given: tuple[tuple[int, int], ...]) -> list[dict[str, int]]:
    return [{"start": start, "stop": stop} for start, stop in given]


def _message(message: ChatMessage) -> dict[str, str]:
    calls: list[dict[str, Any]] = [
        {"malformed": call.reason}
        if isinstance(call, MalformedCall)
        else {"name": call.name, "arguments": dict(call.arguments)}
        for call in message.calls
    ]
    return {
        "role": message.role,
        "name": message.name,
        "content": storable(message.content),
        "calls": json.dumps(calls),
    }
