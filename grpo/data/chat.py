"""Format questions for the policy: plain text or chat messages, with the template and the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo import config
from grpo.data.cells import BadRow
from grpo.data.templates import fill

if TYPE_CHECKING:
    # The import takes seconds, and describing rows needs no tokenizer.
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
# Names of ShareGPT's conversations.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


def conversation(
    source: config.DatasetConfig, question: Any, row: Mapping[str, Any], where: str = "data"
) -> list[Message]:
    """Return the messages of a question, with the system message and the template.

    Args:
        source: section with the template and the system message.
        question: text, or a list of chat messages `{"role": ..., "content": ...}`. In a list, the template wraps the
            user's last message.
        row: columns for the template.
        where: name of the section, for errors.

    Raises:
        BadRow: the question is neither text nor chat messages that end with the user's question.
    """
    column = f"column {source.prompt!r} ({where}.prompt)"
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else checked(question, column)
    last = messages[-1]
    if last["role"] != "user":
        hint = f"; for supervised rows, name the column with {where}.messages" if last["role"] == "assistant" else ""
        raise BadRow(f"{column} ends with a message of {last['role']!r}; it must end with the user's question{hint}")
    if not last["content"].strip():
        raise BadRow(f"the question in {column} is empty")
    messages = [*messages[:-1], {**last, "content": fill(source.template, last["content"], row)}]
    return with_system(source, messages, column, where)


def with_system(
    source: config.DatasetConfig, messages: list[Message], column: str, where: str = "data"
) -> list[Message]:
    """Return the messages with the system message of the section.

    Raises:
        BadRow: the messages already have a system message.
    """
    if not source.system:
        return messages
    if messages[0]["role"] == "system":
        raise BadRow(f"{column} already has a system message, and {where}.system is set; remove one of the two")
    return [{"role": "system", "content": source.system}, *messages]


def render(
    source: config.DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    *,
    tools: Sequence[list[Any]] = (),
    where: str = "data",
) -> list[str]:
    """Return the policy's input for each conversation: inside the chat template if there is one, else the question.

    Args:
        source: section with the choice of the chat template, and the column's name for errors.
        tokenizer: tokenizer with the chat template.
        conversations: messages from `conversation`.
        tools: schemas of the tools of each conversation; empty if there are no tools.
        where: name of the section, for errors.

    Raises:
        ValueError: several messages, or a system message, without a chat template.
    """
    if uses_chat_template(source, tokenizer):
        schemas = tools or [[]] * len(conversations)
        return [
            str(tokenizer.apply_chat_template(messages, shown or None, tokenize=False, add_generation_prompt=True))
            for messages, shown in zip(conversations, schemas, strict=True)
        ]
    reason = "its tokenizer has none" if source.chat_template == "auto" else f"{where}.chat_template=never"
    if source.system:
        raise ValueError(
            f"{where}.system needs the policy's chat template, but {reason}; remove {where}.system, or put its text "
            f"into {where}.template"
        )
    for messages in conversations:
        if len(messages) > 1:
            raise ValueError(_needs_template(source, reason, where))
    return [str(messages[-1]["content"]) for messages in conversations]


def require_plain(
    source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Any], where: str
) -> None:
    """Refuse chat messages if there is no chat template.

    Raises:
        ValueError: a question is a list of messages, and no chat template is used.
    """
    if not uses_chat_template(source, tokenizer) and any(isinstance(question, list) for question in questions):
        reason = "its tokenizer has none" if source.chat_template == "auto" else f"{where}.chat_template=never"
        raise ValueError(_needs_template(source, reason, where))


def _needs_template(source: config.DatasetConfig, reason: str, where: str) -> str:
    key, column = ("messages", source.messages) if source.messages else ("prompt", source.prompt)
    return (
        f"{where}.{key}={column!r} holds chat messages, which need the policy's chat template, but "
        f"{reason}; take a policy with a chat template, or name a column of plain text (in rows of verl, for example, "
        f"{where}.prompt=extra_info.question)"
    )


def uses_chat_template(source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether questions stand inside the tokenizer's chat template, which writes the special tokens itself."""
    return source.chat_template == "auto" and bool(tokenizer.chat_template)


def asked_text(messages: Sequence[Message]) -> str:
    """Return the user's text of a conversation for the verifiers, with the template but without the chat template."""
    return "\n\n".join(message["content"] for message in messages if message["role"] == "user")


def checked(value: Any, column: str) -> list[Message]:
    """Return chat messages for the chat template, without the fields that are empty in the row.

    Args:
        value: value in the data. The messages may have the names of ShareGPT (`from`, `value`), and their content may
            be a list of text parts.
        column: column of the value, for errors.

    Raises:
        BadRow: the value is not a list of messages with text.
    """
    if not isinstance(value, list):
        raise BadRow(f"{column} is {type(value).__name__}; expected text, or a list of chat messages")
    if not value or not all(isinstance(message, dict) for message in value):
        raise BadRow(f"{column} is a list, but not of chat messages {{role: ..., content: ...}}; got {value!r:.80}")
    return [_message(message, column) for message in value]


def _message(message: Message, column: str) -> Message:
    if "role" not in message and "from" in message:
        rest = {name: part for name, part in message.items() if name not in ("from", "value")}
        role = message["from"]
        message = {"role": _ROLES.get(role, role), "content": message.get("value"), **rest}
    parts = message.get("content")
    if isinstance(parts, list):
        kinds = [part.get("type") if isinstance(part, dict) else type(part).__name__ for part in parts]
        other = next((kind for kind in kinds if kind != "text"), None)
        if other is not None:
            raise BadRow(f"{column} has a message with a part of type {other!r}; only parts of type 'text' can be read")
        message = {**message, "content": "".join(part.get("text") or "" for part in parts)}
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise BadRow(f"{column} has a message without a role or a content of text: {message!r:.80}")
    return {name: part for name, part in message.items() if part is not None}


def response_text(value: Any, column: str) -> str:
    """Return a response as text: the text, or the content of a single message of the assistant.

    Args:
        value: value in the data.
        column: column of the value, for errors.

    Raises:
        BadRow: the value is neither.
    """
    if isinstance(value, str):
        return value
    messages = checked(value, column)
    if len(messages) > 1 or messages[0]["role"] != "assistant":
        raise BadRow(
            f"{column} has {len(messages)} message(s); expected a single message, of the assistant; name a column of "
            "whole conversations with data.messages, in place of data.prompt and data.response"
        )
    return str(messages[0]["content"])


def learned_turns(value: Any, column: str, turns: str) -> list[tuple[list[Message], str]]:
    """Return the turns of the assistant that a policy learns: all that was said before each, and its text.

    Args:
        value: conversation in the data.
        column: column of the value, for errors.
        turns: `all` turns of the assistant, or only the `last`.

    Raises:
        BadRow: the value is no conversation, or has no turn of the assistant that follows a question.
    """
    messages = checked(value, column)
    places = [at for at, message in enumerate(messages) if at and message["role"] == "assistant"]
    places = [at for at in places if any(message["role"] == "user" for message in messages[:at])]
    if not places:
        raise BadRow(f"{column} has no message of the assistant after a message of the user")
    return [(messages[:at], str(messages[at]["content"])) for at in (places if turns == "all" else places[-1:])]
