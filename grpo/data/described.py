"""The one description of rows: from columns to questions and references, for training and evaluation alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo import config
from grpo.data.bad_rows import BadRows
from grpo.data.cells import BadRow, answer_inside, cell, missing_column
from grpo.data.chat import Message, conversation
from grpo.data.references import reference_of
from grpo.data.row_files import Places
from grpo.data.rows import Source, load_source
from grpo.data.templates import named_columns
from rewards.checks.references import shown

# Contradicting questions whose rows a message names.
_PAIRS = 3


@dataclass(frozen=True, slots=True)
class DescribedRow:
    """A row with the parts that a question needs.

    Attributes:
        index: number of the row in the data, from 0.
        id: name of the source or file, and index of the row there.
        question: question as it stands in the row: text or chat messages.
        messages: question as chat messages, with the template and the system message.
        reference: reference answer.
        row: columns of the row, and the options of a multiple-choice row as `choices`.
    """

    index: int
    id: str
    question: Any
    messages: list[Message]
    reference: Any
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DescribedRows:
    """The rows of a source.

    Attributes:
        rows: rows that can be used, in the order of the data.
        left_out: number of rows that are left out, for each kind of problem.
        notes: how many rows repeat a question.
        contradictions: warning about questions with different reference answers; empty if there are none.
    """

    rows: tuple[DescribedRow, ...]
    left_out: Counter[str]
    notes: tuple[str, ...]
    contradictions: str


def describe(source: config.DatasetConfig, where: str = "data") -> DescribedRows:
    """Read a source as questions with references.

    Args:
        source: section of the configuration.
        where: name of the section, for errors.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: the source cannot be read, columns are missing, or rows cannot be used; the message has all of them.
    """
    loaded = load_source(source, where)
    require_columns(loaded, {f"{where}.{key}": name for key, name in _columns(source).items()})
    bad, rows = BadRows(source, loaded.places, where), []
    for index, row in enumerate(loaded.rows.to_list()):
        with bad.reading(index):
            rows.append(_described(source, loaded, index, row, where))
    left_out = bad.left_out(len(loaded.rows))
    # A list of tests may be shown to the policy, but an answer may not.
    shown = source.reference in named_columns(source.template)
    if shown and not isinstance(rows[0].reference, (list, dict)):
        raise ValueError(
            f"{where}.template contains {{{source.reference}}}, the column of the reference answer, so the policy "
            "would read the answer; remove it from the template"
        )
    alike = _alike(rows)
    return DescribedRows(
        tuple(rows), left_out, _repeated(len(rows), len(alike), where), _contradictions(alike, loaded.places, where)
    )


def _described(
    source: config.DatasetConfig, loaded: Source, index: int, row: dict[str, Any], where: str
) -> DescribedRow:
    question = question_of(source, row, where)
    reference = reference_of(source, row, where)
    messages = conversation(source, question, row, where)
    return DescribedRow(index, loaded.places.id_of(index), question, messages, reference, row)


def question_of(source: config.DatasetConfig, row: dict[str, Any], where: str) -> Any:
    """Return the question of a row.

    Raises:
        BadRow: it is empty.
    """
    question = cell(row, source.prompt)
    if question is None or (isinstance(question, str) and not question.strip()):
        raise BadRow(f"no question in column {source.prompt!r} ({where}.prompt)")
    return question


def require_columns(loaded: Source, named: dict[str, str]) -> None:
    """Refuse columns that the data do not have.

    Args:
        loaded: the data.
        named: config key -> column.

    Raises:
        ValueError: columns are missing; the message has all of them.
    """
    problems = [missing_column(loaded.rows, name, key) for key, name in named.items()]
    problems += [answer_inside(loaded.rows, name, key) for key, name in named.items() if key.endswith(".reference")]
    if any(problems):
        raise ValueError("\n".join(filter(None, problems)))


def _columns(source: config.DatasetConfig) -> dict[str, str]:
    named = {"prompt": source.prompt}
    if source.choices:
        named |= {f"choices ({name})": name for name in source.choices.columns}
    if not (source.choices and source.choices.right):
        named["reference"] = source.reference
    return named


def _alike(rows: Sequence[DescribedRow]) -> list[list[DescribedRow]]:
    """The rows of each question."""
    by_question: dict[str, list[DescribedRow]] = {}
    for row in rows:
        by_question.setdefault(json.dumps(row.messages, default=str, sort_keys=True), []).append(row)
    return list(by_question.values())


def _repeated(rows: int, questions: int, where: str) -> tuple[str, ...]:
    if rows == questions:
        return ()
    return (f"{rows - questions} of {rows} rows of {where} repeat the question of an earlier row",)


def _contradictions(alike: Sequence[Sequence[DescribedRow]], places: Places, where: str) -> str:
    """A warning about questions with different reference answers, with the places of the first of them."""
    pairs = []
    for first, *others in alike:
        other = next((row for row in others if _text(row.reference) != _text(first.reference)), None)
        if other is not None:
            answers = f"{shown(first.reference)} and {shown(other.reference)}"
            pairs.append(f"{places[first.index]} and {places[other.index]} ({answers})")
    if not pairs:
        return ""
    more = f"; and {len(pairs) - _PAIRS} more" if len(pairs) > _PAIRS else ""
    return (
        f"{len(pairs)} question(s) of {where} stand in several rows with different reference answers, so the "
        f"same completion may be right in the one and wrong in the other: {'; '.join(pairs[:_PAIRS])}{more}. "
        "Correct or remove these rows"
    )


def _text(reference: Any) -> str:
    return json.dumps(reference, default=str, sort_keys=True)
