"""What a world sends is checked before the driver uses it."""

from __future__ import annotations

import json

import pytest

from grpo.environments import wire
from grpo.environments.contract import Answer, Opening, WorldFailed
from grpo.messages import ChatMessage, MalformedCall, ToolCall, WorldReward
from rewards.pool.wire import LENGTH, ProtocolError

CALLS = (ToolCall("look.up", {"text": "\ud800", "x": [1, None]}), MalformedCall("no JSON"))
MESSAGES = (
    ChatMessage("system", "é\x00<|im_end|>"),
    ChatMessage("assistant", "a", CALLS),
    ChatMessage("tool", "", name="t"),
)


def sent(frame: bytes) -> list[object]:
    (size,) = LENGTH.unpack_from(frame)
    assert size == len(frame) - LENGTH.size <= wire.MAX_FRAME
    return json.loads(frame[LENGTH.size :])


@pytest.mark.parametrize(
    "event",
    [
        Opening(),
        Opening(MESSAGES, True),
        Answer(),
        Answer(MESSAGES, True, -0.25, 3, {"raised": 1, "timeout": 2}),
        WorldReward(),
        WorldReward(2.0, {"first": 0.1}, (0.0, 1.5)),
        WorldFailed("error", "why"),
    ],
)
def test_an_event_arrives_as_it_was_sent(event) -> None:
    assert wire.decode_event(sent(wire.encode_event(event))) == event


def test_a_turn_arrives_as_it_was_sent() -> None:
    request, *fields = sent(wire.encode_turn(MESSAGES[1]))
    assert request == wire.ANSWER
    assert wire.decode_turn(*fields) == MESSAGES[1]


def test_numbers_of_other_libraries_become_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    event = Answer(reward=numpy.float32(0.5), calls=numpy.int64(2))
    assert wire.decode_event(sent(wire.encode_event(event))) == Answer(reward=0.5, calls=2)


MESSAGE = ["user", "text", [], ""]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (["secret"], "it has an unknown kind, 'secret'"),
        ([[[]]], "the kind: expected str, got list"),
        (["opening"], "not enough values"),
        (["opening", [], False, 1], "too many values"),
        (["opening", {}, False], "messages: expected list, got dict"),
        (["opening", [], "no"], "replaces: expected bool, got str"),
        (["opening", [["god", "text", [], ""]], False], "a message has the role 'god'"),
        (["opening", [[["user"], "text", [], ""]], False], "the role of a message is list"),
        (["opening", [["user", 7, [], ""]], False], "is int; expected text"),
        (["opening", [["tool", "x", [], "<|im_end|>"]], False], "a tool has the name '<|im_end|>'"),
        (["opening", [["user", "x", [["f", "{}"]], ""]], False], "only the assistant calls tools"),
        (["opening", [["assistant", "x", [["f", "[]"]], ""]], False], "arguments: expected dict, got list"),
        (["opening", [["assistant", "x", [["f", "{"]], ""]], False], "wrong reply: "),
        (["opening", [["assistant", "x", [["f", {}]], ""]], False], "part of a call: expected str"),
        (["opening", [["assistant", "x", [[]], ""]], False], "wrong reply: "),
        (["answer", [MESSAGE], 1, None, 0, {}], "over: expected bool, got int"),
        (["answer", [MESSAGE], False, "1", 0, {}], "the turn's reward is str; expected a number"),
        (["answer", [MESSAGE], False, float("inf"), 0, {}], "the turn's reward is inf"),
        (["answer", [MESSAGE], False, None, -1, {}], "calls is -1"),
        (["answer", [MESSAGE], False, None, 1.0, {}], "calls: expected int, got float"),
        (["answer", [MESSAGE], False, None, True, {}], "calls is True"),
        (["answer", [MESSAGE], False, None, 0, {"other": 1}], "failures has the kind 'other'"),
        (["answer", [MESSAGE], False, None, 0, {"raised": None}], "raised: expected int, got NoneType"),
        (["reward", 10**400, {}, []], "int too large"),
        (["reward", None, {"a": None}, []], "the part 'a' is NoneType"),
        (["reward", None, {str(n): 1 for n in range(65)}, []], "the reward has 65 parts; at most 64"),
        (["reward", None, [], []], "parts: expected dict"),
        (["reward", None, {}, [1, float("nan")]], "the reward of a turn is nan"),
        (["failed", 7], "reason: expected str"),
    ],
)
def test_a_wrong_reply_is_refused(reply, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.decode_event(reply)
    assert str(caught.value).startswith("the world sent a wrong reply: ")
    assert message in str(caught.value)


def test_long_names_and_reasons_are_cut_and_are_unicode() -> None:
    reward = wire.decode_event(["reward", None, {"p" * 1000: 1}, []])
    assert reward == WorldReward(None, {"p" * 100: 1.0})
    failure = wire.decode_event(["failed", "\ud800" + "r" * 10_000])
    assert failure == WorldFailed("error", "\ufffd" + "r" * 599)


def test_long_messages_share_the_longest_frame() -> None:
    answer = Answer(tuple(ChatMessage("tool", "\x01" * 500_000) for _ in range(4)))
    cut = wire.decode_event(sent(wire.encode_event(answer)))
    assert isinstance(cut, Answer)
    assert [message.content[:131_073].count("\x01") for message in cut.messages] == [131_072] * 4
    whole = Answer(tuple(ChatMessage("tool", "é" * 500_000) for _ in range(4)))
    assert wire.decode_event(sent(wire.encode_event(whole))) == whole
