"""The first messages of a conversation: the row's own, and what an environment's `reset` returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.environments.contract import Opening
from grpo.messages import ROLES, ChatMessage

_FORMS = "return None, text, a message such as {'role': 'user', 'content': '...'}, or a list of messages"


def opening_of(value: Any, environment: str, separator: str) -> Opening:
    """Read what `reset` returned.

    Args:
        value: None, text, a message, or a list of messages. A list of parts, as TRL's environments for images return
            it, is text if all its parts are text.
        environment: name of the environment, for messages.
        separator: text between the row's question and the text of `reset`.

    Returns:
        No messages for None; for text, a user's message that follows the row's messages; for messages, these in place
        of the row's messages.

    Raises:
        ValueError: the value has another form.
    """
    if value is None:
        return Opening()
    if isinstance(value, str):
        return Opening((ChatMessage("user", separator + value),) if value else ())
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "role" not in each for each in value):
        return Opening((ChatMessage("user", separator + _text_of(value, environment)),))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"reset of {environment} returned {_kind(value)}; {_FORMS}")
    messages = tuple(_message(each, environment) for each in value)
    if messages[-1].role != "user":
        raise ValueError(
            f"reset of {environment} returned messages that end with the role {messages[-1].role!r}; end with a "
            "message of the user, which the policy answers"
        )
    return Opening(messages, replaces=True)


def first_messages(rows: Sequence[ChatMessage], opening: Opening) -> tuple[ChatMessage, ...]:
    """Return the messages of the first prompt.

    A user's message that follows a user's message becomes part of it, because some chat templates refuse two messages
    of the same role, and because TRL does so.

    Args:
        rows: messages of the row.
        opening: opening of the conversation.
    """
    messages = [] if opening.replaces else list(rows)
    for message in opening.messages:
        if messages and message.role == "user" == messages[-1].role:
            messages[-1] = ChatMessage("user", messages[-1].content + message.content)
        elif messages:
            messages.append(message)
        else:
            messages.append(ChatMessage(message.role, message.content.lstrip("\n"), name=message.name))
    return tuple(messages)


def _message(value: Any, environment: str) -> ChatMessage:
    if not isinstance(value, Mapping) or value.get("role") not in ROLES or "content" not in value:
        raise ValueError(f"reset of {environment} returned a list with {_kind(value)}; {_FORMS}")
    content = value["content"]
    return ChatMessage(value["role"], content if isinstance(content, str) else _text_of(content, environment))


def _text_of(parts: Any, environment: str) -> str:
    """Return the text of a message's parts `{"type": "text", "text": ...}`."""
    if not isinstance(parts, list):
        raise ValueError(f"reset of {environment} returned a message whose content is {_kind(parts)}; return text")
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"reset of {environment} returned a message with parts that are no text, for example an image; the policy "
            "reads only text"
        )
    return "".join(text for text in texts if text)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {', '.join(map(repr, value))}"[:200]
    return type(value).__name__ if value not in ([], ()) else "an empty list"
