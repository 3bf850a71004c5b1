"""Read a data source as preferences: a question and two or more answers, the best first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo import config
from grpo.algorithm.comparisons import AnswerComparison
from grpo.data.bad_rows import BadRows
from grpo.data.cells import BadRow, cell
from grpo.data.chat import (
    Message,
    checked,
    conversation,
    render,
    require_plain,
    response_text,
    uses_chat_template,
)
from grpo.data.described import question_of, require_columns
from grpo.data.prompts import tokenize
from grpo.data.rows import load_source
from grpo.data.sources import held_out_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """A question with its answers.

    Attributes:
        question: question as it stands in the row: text or chat messages.
        messages: messages before the answers, with the template and the system message.
        answers: texts of two or more answers, the best first.
        margin: how much higher the reward of the better of two answers must be.
        columns: columns of the row.
    """

    question: Any
    messages: list[Message]
    answers: tuple[str, ...]
    margin: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Comparisons that fit the length limit.

    Attributes:
        training: comparisons to train on.
        held_out: comparisons that `data.validation` holds out; empty without it.
        dropped: number of rows with an answer that is too long.
        left_out: number of bad rows that are left out, for each kind of problem (`data.on_bad_row=drop`).
    """

    training: tuple[AnswerComparison, ...]
    held_out: tuple[AnswerComparison, ...] = ()
    dropped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def ranked_answers(source: config.DatasetConfig, where: str = "data") -> tuple[list[RankedAnswers], Counter[str]]:
    """Read a source as questions with ranked answers.

    Returns:
        The questions, and the number of rows that are left out, for each kind of problem.

    Raises:
        ValueError: the source cannot be read, columns are missing, or rows cannot be used; the message has all of them.
    """
    loaded = load_source(source, where)
    keys = ["ranking"] if source.ranking else ["chosen", "rejected", *(["margin"] if source.margin else [])]
    rows = loaded.rows.to_list()
    # TRL's rows may have the question only inside of the conversations.
    if not any(_is_conversation(value) for row in rows for value in _answers(source, row)):
        keys.append("prompt")
    require_columns(loaded, {f"{where}.{key}": getattr(source, key) for key in keys})
    bad, ranked = BadRows(source, loaded.places, where), []
    for index, row in enumerate(rows):
        with bad.reading(index):
            ranked.append(_ranked(source, row, where))
    return ranked, bad.left_out(len(rows))


def _answers(source: config.DatasetConfig, row: Mapping[str, Any]) -> list[Any]:
    if source.ranking:
        values = cell(row, source.ranking)
        return values if isinstance(values, list) else []
    return [cell(row, source.chosen), cell(row, source.rejected)]


def _is_conversation(value: Any) -> bool:
    """Whether an answer is a conversation of several messages."""
    return isinstance(value, list) and len(value) > 1


def _ranked(source: config.DatasetConfig, row: dict[str, Any], where: str) -> RankedAnswers:
    values, names = _answers(source, row), _names(source, row, where)
    if any(_is_conversation(value) for value in values):
        question, values = _shared_part(values, names)
    else:
        question = question_of(source, row, where)
    messages = conversation(source, question, row, where)
    answers = tuple(_answer(value, name) for value, name in zip(values, names, strict=True))
    first: dict[str, str] = {}
    for answer, name in zip(answers, names, strict=True):
        if answer in first:
            raise BadRow(f"{first[answer]} and {name} hold the same answer, so neither is better")
        first[answer] = name
    return RankedAnswers(question, messages, answers, _margin(source, row, where), row)


def _names(source: config.DatasetConfig, row: Mapping[str, Any], where: str) -> list[str]:
    """Return the name of each answer for messages."""
    if not source.ranking:
        return [f"column {source.chosen!r} ({where}.chosen)", f"column {source.rejected!r} ({where}.rejected)"]
    column, values = f"column {source.ranking!r} ({where}.ranking)", cell(row, source.ranking)
    if not isinstance(values, list):
        raise BadRow(f"{column} is {type(values).__name__}; expected a list of answers, the best first")
    if len(values) < 2:
        raise BadRow(f"{column} ranks {len(values)} answer(s); a ranking needs two or more")
    return [f"answer {place + 1} of {column}" for place in range(len(values))]


def _shared_part(values: list[Any], names: list[str]) -> tuple[list[Message], list[Any]]:
    """Divide whole conversations into what they have in common, and their last messages."""
    conversations = [checked(value, name) for value, name in zip(values, names, strict=True)]
    before = conversations[0][:-1]
    if any(messages[:-1] != before for messages in conversations):
        raise BadRow(
            f"{names[0]} and the other answer differ before their last message; both must answer the same conversation"
        )
    if not before or before[-1]["role"] != "user":
        raise BadRow(f"{names[0]} has no message of the user before its last message")
    return before, [messages[-1:] for messages in conversations]


def _answer(value: Any, name: str) -> str:
    if value is None:
        raise BadRow(f"no answer in {name}")
    if isinstance(value, dict):
        value = [value]
    text = response_text(value, name)
    if not text.strip():
        raise BadRow(f"{name} is empty")
    return text


def _margin(source: config.DatasetConfig, row: Mapping[str, Any], where: str) -> float:
    if not source.margin:
        return 0.0
    value = cell(row, source.margin)
    column = f"column {source.margin!r} ({where}.margin)"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadRow(f"{column} needs a number of 0 or more, got: {value!r:.80}")
    return float(value)


def load_preferences(
    source: config.TrainingRowsConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    microbatch_tokens: int,
    job: str = "dpo",
    reads_end: bool = False,
) -> PreferenceSet:
    """Read a source as comparisons of token ids, and hold out the questions of `validation`.

    Each answer ends with the end token, as in `grpo.data.supervised`. All rows of a held-out question are held out.

    Args:
        source: section of the configuration.
        tokenizer: tokenizer of the policy.
        max_tokens: largest length of a question with an answer, in tokens. Longer rows are dropped.
        microbatch_tokens: largest size of a whole comparison, in tokens.
        job: command whose section has `max_tokens`, for messages.
        reads_end: whether the model reads the end token of an answer, as a reward model does. A model never reads the
            last token of a sequence, so the end token then stands there twice.

    Raises:
        ValueError: columns are missing, rows cannot be used, messages have no chat template, the tokenizer has no end
            token, no row fits, a ranking is too long for a microbatch, or all rows are held out.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so a policy could not learn to stop")
    ranked, left_out = ranked_answers(source)
    require_plain(source, tokenizer, [each.question for each in ranked], "data")
    texts = render(source, tokenizer, [each.messages for each in ranked])
    prompts = tokenize(tokenizer, texts, special=not uses_chat_template(source, tokenizer))
    answers = iter(tokenize(tokenizer, [text for each in ranked for text in each.answers], special=False))
    ending = (tokenizer.eos_token_id,) * (2 if reads_end else 1)
    fitting: list[tuple[str, AnswerComparison]] = []
    shortest = None
    for each, text, prompt in zip(ranked, texts, prompts, strict=True):
        ids = [(*next(answers), *ending) for _ in each.answers]
        longest = len(prompt) + max(map(len, ids))
        shortest = longest if shortest is None else min(shortest, longest)
        if prompt and longest <= max_tokens:
            fitting.append((text, AnswerComparison.of(prompt, ids, each.margin)))
    if not fitting:
        raise ValueError(
            f"none of the {len(ranked)} rows fits {job}.max_tokens={max_tokens}; the shortest needs {shortest} tokens"
        )
    _refuse_long_rankings([each for _, each in fitting], microbatch_tokens, job)
    held_out = held_out_texts([text for text, _ in fitting], source.validation, "data.validation")
    return PreferenceSet(
        tuple(each for text, each in fitting if text not in held_out),
        tuple(each for text, each in fitting if text in held_out),
        len(ranked) - len(fitting),
        left_out,
    )


def _refuse_long_rankings(comparisons: list[AnswerComparison], microbatch_tokens: int, job: str) -> None:
    longest = max(comparisons, key=lambda each: each.computed_tokens)
    if longest.computed_tokens > microbatch_tokens:
        raise ValueError(
            f"a ranking of {len(longest.answers)} answers has {longest.computed_tokens} tokens, more than "
            f"learner.microbatch_tokens={microbatch_tokens}, and a microbatch holds all answers to a question; raise "
            f"learner.microbatch_tokens, lower {job}.max_tokens, or shorten the rankings"
        )
