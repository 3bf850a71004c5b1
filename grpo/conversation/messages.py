"""What is said in a conversation, as text: what verifiers judge and what pages show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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


def without_lone_surrogates(text: str) -> str:
    """Return the text as Unicode: surrogate pairs are joined, and a half of a pair becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"a tool has the name {name!r:.80}; expected 1 to 64 letters, digits, '_', '.' or '-'")
