"""What is said in a conversation, as text: what verifiers judge and what pages show; and how a conversation ended."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
# A chat template may write a name beside its special tokens, so a name must not be able to spell one.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the policy wrote.

    Attributes:
        name: name of the tool; 1 to 64 letters, digits, `_`, `.` or `-`. A tool of this name may not exist.
        arguments: arguments by name, as JSON gives them. They are the policy's words: check them before use.
    """

    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        _require_name(self.name)


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A call that cannot be read. `reason` is a sentence for the policy: what is wrong, and how to write a call."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of a conversation.

    A half of a surrogate pair becomes U+FFFD: neither a tokenizer nor a JSON file can hold it.

    Attributes:
        role: who speaks. The policy is `assistant`.
        content: text. A sampled turn has its whole text here: thoughts, calls, everything but the end of the turn.
        calls: calls in the text of a sampled turn, in their order.
        name: name of the tool, for a tool's result; empty if the chat template does not need it.
    """

    role: Role
    content: str
    calls: tuple[ToolCall | MalformedCall, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"a message has the role {self.role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            kind = type(self.content).__name__
            raise ValueError(f"the content of a message ({self.role}) is {kind}; expected text")
        if self.calls and self.role != "assistant":
            raise ValueError(f"a message of {self.role!r} has tool calls; only the assistant calls tools")
        if self.name:
            _require_name(self.name)
        object.__setattr__(self, "content", without_lone_surrogates(self.content))


class ConversationEnd(enum.StrEnum):
    """What ended a conversation. The value is the end's name in metrics and stored rollouts."""

    ANSWER = "answer"
    """The policy called no tool, and there is no environment that answers."""
    OVER = "over"
    """The environment, or the agent's program, ended the conversation."""
    TURNS = "turns"
    """The limit of turns."""
    TOKENS = "tokens"
    """The limit of tokens, or a turn that its limit cut off."""
    SECONDS = "seconds"
    """The limit of seconds."""
    FAILED = "failed"
    """A tool's or an environment's process died, or an environment raised or missed its deadline: no score."""


@dataclass(frozen=True, slots=True)
class WorldReward:
    """The reward that an environment gives.

    Attributes:
        score: reward of the conversation; None if the environment rewards nothing.
        parts: named parts of the score.
        turns: reward of each turn of the policy, for environments that reward turns; empty otherwise.
    """

    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Continuation:
    """A later part of a conversation, which the policy read as a sequence of its own.

    Attributes:
        prompt_ids: all tokens before the part's first sampled token: the history as the chat template rewrote it.
        token_ids: the tokens after them, the last of which is sampled.
        logprobs: for each of these tokens, as in `Completion`.
        given: as in `Completion`.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    given: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a completion of several turns has beside its tokens.

    Attributes:
        messages: all messages, with those of the first prompt.
        opening: number of messages in the first prompt.
        ended: what ended the conversation.
        reason: for `ended=failed`: what failed; otherwise empty.
        reward: reward of the environment.
        prompt_ids: tokens before the completion: the first prompt as it was played, with the tools and what `reset`
            said. Empty if they are the tokens of the row's prompt.
        further: parts of the conversation in which the chat template had rewritten the history. The completion itself
            is the part before them.
        calls: number of the policy's tool calls.
        failures: kind of failure of a call -> number: `unknown_tool`, `bad_arguments`, `malformed`, `raised`,
            `timeout`.
        waited_s: time that the conversation waited for tools and environment, in seconds.
        lasted_s: time from the first request to the end, in seconds.
        timed_out: for `ended=failed`: whether a deadline passed (`timeout`), and not another failure (`error`).
    """

    messages: tuple[ChatMessage, ...]
    opening: int
    ended: ConversationEnd
    reason: str = ""
    reward: WorldReward = WorldReward()
    prompt_ids: tuple[int, ...] = ()
    further: tuple[Continuation, ...] = ()
    calls: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    waited_s: float = 0.0
    lasted_s: float = 0.0
    timed_out: bool = False


def without_lone_surrogates(text: str) -> str:
    """Return the text as Unicode: surrogate pairs are joined, and a half of a pair becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"a tool has the name {name!r:.80}; expected 1 to 64 letters, digits, '_', '.' or '-'")
