"""The frames between the driver and the process of a conversation: a length, then a JSON list.

The driver trusts nothing that comes from a world, because a world runs the user's code: types, numbers and lengths are
checked here. The first frame, the row, is a pickle, because the driver makes it and a row may have any values.
"""

from __future__ import annotations

import json
import math
import numbers
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.environments.contract import Answer, Event, Opening, WorldFailed
from grpo.environments.results import cut
from grpo.messages import ChatMessage, MalformedCall, ToolCall, WorldReward, without_lone_surrogates
from rewards.pool.wire import LENGTH, ProtocolError

# Longest frame from a world, in bytes.
MAX_FRAME = 4 << 20
# If an answer is too long, its messages keep this number of characters. JSON writes a character in at most 6 bytes.
_MOST_CHARACTERS = MAX_FRAME // 8
_LONGEST_REASON, _LONGEST_NAME, _MOST_PARTS = 600, 100, 64
FAILURES = ("unknown_tool", "bad_arguments", "malformed", "raised", "timeout")
ANSWER, CLOSE = "answer", "close"


def frame(body: bytes) -> bytes:
    """Return the body with its length before it."""
    return LENGTH.pack(len(body)) + body


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Return the frame that begins a conversation."""
    return frame(pickle.dumps(dict(row)))


def encode_turn(turn: ChatMessage) -> bytes:
    """Return the frame that asks the world for an answer.

    A call whose arguments cannot be written as JSON, because they are nested too deeply, becomes a malformed call.
    """
    return frame(json.dumps([ANSWER, _message_fields(turn)]).encode())


def encode_close() -> bytes:
    """Return the frame that asks the world for its reward."""
    return frame(json.dumps([CLOSE]).encode())


def decode_turn(fields: Sequence[Any]) -> ChatMessage:
    """Read the policy's turn; called in the world's process."""
    return _message(fields)


def encode_event(event: Event) -> bytes:
    """Return the frame with a world's reply; called in the world's process.

    If the frame would be too long, the messages are cut, with a mark at their ends.

    Raises:
        ValueError: the reply cannot be written as JSON, or is too long although its messages are cut.
    """
    body = _dumped(_event_fields(event))
    if len(body) > MAX_FRAME and isinstance(event, (Opening, Answer)) and event.messages:
        most = _MOST_CHARACTERS // len(event.messages)
        body = _dumped(_event_fields(event, most))
    if len(body) > MAX_FRAME:
        raise ValueError(
            f"the world's {_noun(event)} has {len(body):,} bytes of JSON; at most {MAX_FRAME:,} can be sent"
        )
    return frame(body)


def decode_event(reply: Sequence[Any]) -> Event:
    """Read a world's reply.

    Raises:
        ProtocolError: the reply has another form, or a number in it is not finite. The message is a sentence.
    """
    try:
        kind, *fields = reply
        if kind == "opening":
            messages, replaces = fields
            return Opening(_messages(messages), _typed(replaces, bool, "replaces"))
        if kind == "answer":
            messages, over, reward, calls, failures = fields
            return Answer(
                _messages(messages), _typed(over, bool, "over"), _number(reward, "the turn's reward"),
                _count(calls, "calls"), _failures(failures),
            )  # fmt: skip
        if kind == "reward":
            score, parts, turns = fields
            return WorldReward(_number(score, "the score"), _parts(parts), tuple(_turn_rewards(turns)))
        if kind == "failed":
            (reason,) = fields
            text = without_lone_surrogates(_typed(reason, str, "reason"))
            return WorldFailed("error", text[:_LONGEST_REASON])
        raise ValueError(f"it has an unknown kind, {_typed(kind, str, 'the kind')!r:.60}")
    except (ValueError, TypeError, OverflowError) as problem:
        raise ProtocolError(f"the world sent a wrong reply: {problem}") from problem


def _dumped(fields: list[Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, default=_plain).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as problem:
        raise ValueError(f"the world's {fields[0]} cannot be written as JSON: {problem}") from problem


def _plain(value: Any) -> Any:
    """Return a number of numpy as Python's number."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"it has a value of the type {type(value).__name__}")


def _event_fields(event: Any, most: int | None = None) -> list[Any]:
    if isinstance(event, Opening):
        return ["opening", [_message_fields(each, most) for each in event.messages], event.replaces]
    if isinstance(event, Answer):
        messages = [_message_fields(each, most) for each in event.messages]
        return ["answer", messages, event.over, event.reward, event.calls, dict(event.failures)]
    if isinstance(event, WorldReward):
        return ["reward", event.score, dict(event.parts), list(event.turns)]
    if isinstance(event, WorldFailed):
        return ["failed", event.reason[:_LONGEST_REASON]]
    raise ValueError(f"the world returned {type(event).__name__}; expected an Opening, an Answer or a WorldReward")


def _noun(event: Event) -> str:
    return {Opening: "opening", Answer: "answer", WorldReward: "reward"}.get(type(event), "failure")


def _message_fields(message: ChatMessage, most: int | None = None) -> list[Any]:
    content = message.content if most is None else cut(message.content, most)
    return [message.role, content, [_call_fields(call) for call in message.calls], message.name]


def _call_fields(call: ToolCall | MalformedCall) -> list[Any]:
    if isinstance(call, MalformedCall):
        return [call.reason]
    try:
        arguments = json.dumps(dict(call.arguments))
    except RecursionError:
        return [f"the arguments of the call of {call.name!r} are nested too deeply"]
    return [call.name, arguments]


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    return tuple(_message(each) for each in _typed(value, list, "messages"))


def _message(fields: Any) -> ChatMessage:
    role, content, calls, name = _typed(fields, list, "message")
    if not isinstance(role, str):
        raise ValueError(f"the role of a message is {type(role).__name__}; expected text")
    return ChatMessage(
        role,  # type: ignore[arg-type]  # ChatMessage refuses other roles.
        content,
        tuple(_call(each) for each in _typed(calls, list, "calls")),
        _typed(name, str, "name"),
    )


def _call(fields: Any) -> ToolCall | MalformedCall:
    name, *arguments = (_typed(each, str, "part of a call") for each in _typed(fields, list, "call"))
    if not arguments:
        return MalformedCall(name)
    (text,) = arguments
    try:
        return ToolCall(name, _typed(json.loads(text), dict, "arguments"))
    except RecursionError:
        return MalformedCall(f"the arguments of the call of {name!r} are nested too deeply")


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _number(value: Any, name: str) -> float | None:
    return None if value is None else _finite(value, name)


def _finite(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {type(value).__name__}; expected a number")
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{name} is {number}; expected a finite number")
    return number


def _count(value: Any, name: str) -> int:
    number: int = _typed(value, int, name)
    if isinstance(value, bool) or not 0 <= number < 1 << 31:
        raise ValueError(f"{name} is {number!r:.60}; expected a number of calls, 0 or more")
    return number


def _failures(value: Any) -> dict[str, int]:
    failures = _typed(value, dict, "failures")
    for kind in failures:
        if kind not in FAILURES:
            raise ValueError(f"failures has the kind {kind!r:.60}; expected one of {', '.join(FAILURES)}")
    return {kind: _count(number, kind) for kind, number in failures.items()}


def _parts(value: Any) -> dict[str, float]:
    parts = _typed(value, dict, "parts")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"the reward has {len(parts)} parts; at most {_MOST_PARTS} are allowed")
    return {
        without_lone_surrogates(name)[:_LONGEST_NAME]: _finite(number, f"the part {name!r:.60}")
        for name, number in parts.items()
    }


def _turn_rewards(value: Any) -> list[float]:
    return [_finite(each, "the reward of a turn") for each in _typed(value, list, "turns")]
