"""What a conversation needs of the world: the words between the driver and the process of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo.messages import ChatMessage, WorldReward


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a conversation.

    Attributes:
        messages: messages that follow the row's own messages, or replace them if `replaces` is true; may be empty.
        replaces: whether the messages replace those of the row.
    """

    messages: tuple[ChatMessage, ...] = ()
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the world says to a turn of the policy.

    Attributes:
        messages: results of the tools, in the order of the calls, or the environment's text; empty if the turn needs no
            answer, which ends the conversation.
        over: whether the environment ended the conversation.
        reward: reward of the turn; None if the environment does not reward turns.
        calls: number of tool calls in the turn.
        failures: kind -> number of calls that failed: `unknown_tool`, `bad_arguments`, `malformed`, `raised`,
            `timeout`. The messages say what was wrong, and the conversation continues.
    """

    messages: tuple[ChatMessage, ...] = ()
    over: bool = False
    reward: float | None = None
    calls: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorldFailed:
    """The world of a conversation failed, so the conversation has no score.

    Attributes:
        status: `timeout` if a deadline passed, `error` if the process died or the environment raised.
        reason: what failed, in a sentence.
    """

    status: str
    reason: str


# `WorldReward` answers `close`.
Event = Opening | Answer | WorldReward | WorldFailed


class World(Protocol):
    """The tools and the environment of a single conversation. It runs in a process of its own, and may block."""

    def open(self, row: Mapping[str, Any]) -> Opening:
        """Begin. `row` has the columns that verifiers get."""
        ...

    def answer(self, turn: ChatMessage) -> Answer:
        """Answer a turn of the policy: run its calls, or let the environment answer."""
        ...

    def close(self) -> WorldReward:
        """End the conversation, and return the environment's reward."""
        ...


class Worlds(Protocol):
    """The worlds of all conversations, in the driver. No call blocks; the results are events.

    Each `open`, `answer` and `close` gets exactly one event. If a world fails between two requests, the second request
    gets the failure.
    """

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Schemas of all tools, as `transformers.utils.get_json_schema` makes them, for the first prompt."""
        ...

    def open(self, key: int, row: Mapping[str, Any]) -> None:
        """Begin the world of a conversation; the event is an `Opening`."""
        ...

    def answer(self, key: int, turn: ChatMessage) -> None:
        """Let the world answer a turn; the event is an `Answer`."""
        ...

    def close(self, key: int) -> None:
        """End the world; the event is a `WorldReward`. Afterwards the key is free."""
        ...

    def abandon(self, key: int) -> None:
        """End the world without an event."""
        ...

    def events(self, wait_s: float = 0.0) -> list[tuple[int, Event]]:
        """Return the events since the last call; wait at most `wait_s` seconds for the first.

        After a `WorldFailed`, the world is gone and the key is free.
        """
        ...
