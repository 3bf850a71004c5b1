"""Read a data source as supervised rows: what is said before, and the response that the policy learns."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo import config
from grpo.algorithm.packing import TrainingSequence
from grpo.data.bad_rows import BadRows
from grpo.data.cells import BadRow, cell
from grpo.data.chat import (
    Message,
    conversation,
    learned_turns,
    render,
    require_plain,
    response_text,
    uses_chat_template,
    with_system,
)
from grpo.data.described import question_of, require_columns
from grpo.data.prompts import tokenize
from grpo.data.rows import load_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class SupervisedTurn:
    """A response, and all that is said before it.

    Attributes:
        question: question as it stands in the row: text or chat messages.
        messages: messages before the response, with the template and the system message.
        response: text that the policy learns.
        tools: schemas of the tools that the policy reads.
    """

    question: Any
    messages: list[Message]
    response: str
    tools: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SupervisedSet:
    """Supervised sequences that fit the length limit.

    Attributes:
        sequences: the sequences.
        dropped: number of sequences that are too long.
        left_out: number of bad rows that are left out, for each kind of problem (`data.on_bad_row=drop`).
    """

    sequences: tuple[TrainingSequence, ...]
    dropped: int
    left_out: Counter[str]


def supervised_turns(source: config.DatasetConfig, where: str = "data") -> tuple[list[SupervisedTurn], Counter[str]]:
    """Read a source as responses to learn.

    Returns:
        The responses, and the number of rows that are left out, for each kind of problem.

    Raises:
        ValueError: the source cannot be read, columns are missing, or rows cannot be used; the message has all of them.
    """
    loaded = load_source(source, where)
    keys = ["messages", *(["tools"] if source.tools else [])] if source.messages else ["prompt", "response"]
    require_columns(loaded, {f"{where}.{key}": getattr(source, key) for key in keys})
    bad, turns = BadRows(source, loaded.places, where), []
    for index, row in enumerate(loaded.rows.to_list()):
        with bad.reading(index):
            turns += _turns(source, row, where)
    return turns, bad.left_out(len(loaded.rows))


def _turns(source: config.DatasetConfig, row: dict[str, Any], where: str) -> list[SupervisedTurn]:
    if source.messages:
        column = f"column {source.messages!r} ({where}.messages)"
        tools = _tools(source, row, where)
        return [
            SupervisedTurn(before, with_system(source, before, column, where), response, tools)
            for before, response in learned_turns(cell(row, source.messages), column, source.learn_turns)
        ]
    question = question_of(source, row, where)
    response, column = cell(row, source.response), f"column {source.response!r} ({where}.response)"
    if response is None:
        raise BadRow(f"no value in {column}")
    return [SupervisedTurn(question, conversation(source, question, row, where), response_text(response, column))]


def _tools(source: config.DatasetConfig, row: dict[str, Any], where: str) -> list[Any]:
    """Return the schemas of a row's tools; some data sets hold them as JSON text."""
    value = cell(row, source.tools) if source.tools else []
    column = f"column {source.tools!r} ({where}.tools)"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise BadRow(f"{column} is text, but not JSON: {problem}") from problem
    if value is not None and not isinstance(value, list):
        raise BadRow(f"{column} is {type(value).__name__}; expected a list of JSON schemas of tools")
    return value or []


def load_supervised(
    source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> SupervisedSet:
    """Read a source as prompt-and-response sequences. Only the response and its end token carry loss.

    A conversation becomes one sequence for each turn that the policy learns, since chat templates write earlier turns
    in another form than the last one (they leave out its reasoning, for example).

    Raises:
        ValueError: columns are missing, rows cannot be used, messages have no chat template, the tokenizer has no end
            token, or no sequence fits.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so a policy could not learn to stop")
    turns, left_out = supervised_turns(source)
    require_plain(source, tokenizer, [turn.question for turn in turns], "data")
    texts = render(source, tokenizer, [turn.messages for turn in turns], tools=[turn.tools for turn in turns])
    prompt_ids = tokenize(tokenizer, texts, special=not uses_chat_template(source, tokenizer))
    response_ids = tokenize(tokenizer, [turn.response for turn in turns], special=False)
    sequences = tuple(
        TrainingSequence((*prompt, *response, tokenizer.eos_token_id), len(prompt), (0.0,) * (len(response) + 1), 0.0)
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
        if prompt and len(prompt) + len(response) < max_tokens
    )
    if not sequences:
        shortest = min(
            len(prompt) + len(response) + 1 for prompt, response in zip(prompt_ids, response_ids, strict=True)
        )
        raise ValueError(
            f"none of the {len(turns)} rows fits sft.max_tokens={max_tokens}; the shortest has {shortest} tokens"
        )
    return SupervisedSet(sequences, len(turns) - len(sequences), left_out)
