"""Format questions for the policy: plain text or chat messages, with the template and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo import config

Message = dict[str, Any]


def render(
    source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Any], *, where: str = "data"
) -> list[str]:
    """Return the policy's input for each question: the template, inside the chat template if there is one.

    Args:
        source: section with the templates, the system message, and the column's name for errors.
        tokenizer: tokenizer with the chat template.
        questions: texts, or lists of chat messages `{"role": ..., "content": ...}`. In a list, the template wraps the
            user's last message.
        where: name of the section, for errors.

    Raises:
        ValueError: a question is neither text nor chat messages, or has messages without a chat template.
    """
    conversations = _all_in_template(source, questions, where)
    if source.chat_template == "auto" and tokenizer.chat_template:
        return [
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            for messages in conversations
        ]
    for question in questions:
        if not isinstance(question, str):
            reason = "its tokenizer has none" if source.chat_template == "auto" else f"{where}.chat_template=never"
            raise ValueError(
                f"{where}.prompt={source.prompt!r} holds chat messages, which need the policy's chat template, but "
                f"{reason}; take a policy with a chat template, or name a column of plain text"
            )
    return [str(messages[-1]["content"]) for messages in conversations]


def asked_texts(source: config.DatasetConfig, questions: Sequence[Any], *, where: str = "data") -> list[str]:
    """Return the user's text of each question for the verifiers, with the template but without the chat template.

    The arguments and errors are the same as in `render`.
    """
    return [
        "\n\n".join(message["content"] for message in messages if message["role"] == "user")
        for messages in _all_in_template(source, questions, where)
    ]


def _all_in_template(source: config.DatasetConfig, questions: Sequence[Any], where: str) -> list[list[Message]]:
    return [
        _in_template(source, question, f"row {index}: column {source.prompt!r} ({where}.prompt)", where)
        for index, question in enumerate(questions)
    ]


def _in_template(source: config.DatasetConfig, question: Any, cell: str, where: str) -> list[Message]:
    """Return the messages of a question, with the system message and the template."""
    if isinstance(question, str):
        messages: list[Message] = [{"role": "user", "content": question}]
    else:
        messages = checked(question, cell)
    last = messages[-1]
    if last["role"] != "user":
        raise ValueError(f"{cell} ends with a message of {last['role']!r}; it must end with the user's question")
    messages = [*messages[:-1], {**last, "content": source.template.replace("{prompt}", last["content"])}]
    if not source.system:
        return messages
    if messages[0]["role"] == "system":
        raise ValueError(f"{cell} already has a system message, and {where}.system is set; remove one of the two")
    return [{"role": "system", "content": source.system}, *messages]


def checked(value: Any, cell: str) -> list[Message]:
    """Return chat messages for the chat template, without the fields that are empty in the row.

    Args:
        value: value in the data.
        cell: place of the value, for errors.

    Raises:
        ValueError: the value is not a list of messages with text.
    """
    if not isinstance(value, list):
        raise ValueError(f"{cell} is {type(value).__name__}; expected text, or a list of chat messages")
    if not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{cell} is a list, but not of chat messages {{role: ..., content: ...}}; got {value!r:.80}")
    for message in value:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"{cell} has a message without a role or a content of text: {message!r:.80}")
    return [{name: part for name, part in message.items() if part is not None} for message in value]


def response_text(value: Any, cell: str) -> str:
    """Return a response as text: the text, or the content of a single message of the assistant.

    Args:
        value: value in the data.
        cell: place of the value, for errors.

    Raises:
        ValueError: the value is neither.
    """
    if isinstance(value, str):
        return value
    messages = checked(value, cell)
    if len(messages) > 1 or messages[0]["role"] != "assistant":
        raise ValueError(f"{cell} has {len(messages)} message(s); expected a single message, of the assistant")
    return str(messages[0]["content"])
